"""The generic adapter on the families that it patches, and on those that it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import hosts
import pytest
import torch
from hosts import logits
from rows.generic import FAMILIES, GRIDS, WIDE, generic_batch, row
from torch import nn

import vega3d
from vega3d_plugin.errors import HostError, MetaModelError
from vega3d_plugin.hooks import SeamMissedWarning
from vega3d_plugin.patching import find_host
from vega3d_plugin.probe import watching
from vega3d_qwen_vl.tiny import tiny_model as tiny_qwen
from vega3d_qwen_vl.tiny import tiny_processor as tiny_qwen_processor
from vega3d_transformers.adapter import TransformersAdapter
from vega3d_transformers.measuring import SeamRefusedError
from vega3d_transformers.tiny import FAMILIES as ALL
from vega3d_transformers.tiny import HIDDEN, IMAGE, available_families, tiny_model, tiny_processor

#: Families that are refused, and why.
REFUSED = {
    "aria": "not in raster order",
    "blip_2": "not in raster order",
    "idefics2": "not in raster order",
    "glm4v": "packed patches",
    "video_llama_3": "packed patches",
    "lfm2_vl": "packed patches",
}


def traces(model: nn.Module) -> dict[str, tuple[bool, list[str], list[int]]]:
    """What running a model could leave behind in its modules."""
    return {name: (m.training, [*m.__dict__], [*m._forward_hooks]) for name, m in model.named_modules()}


def test_every_family_was_tried() -> None:
    assert {*ALL} == {*REFUSED, *GRIDS}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fused_once_and_sees_its_pictures(family: str) -> None:
    host = row(family)
    model, batch = host.build(), host.batch()
    before = logits(model, batch)
    hosts.patch(model, **host.options)
    with watching(model) as records:
        assert torch.equal(logits(model, batch), before)
    clips = [clip for record in records for clip in record.clips]
    assert [(c.kind, c.grid.t, c.grid.h, c.grid.w) for c in clips] == [("image", 1, *GRIDS[family])] * 2
    statistics = vega3d.get_handle(model).seam.statistics
    expected = batch["pixel_values"].reshape(-1, *batch["pixel_values"].shape[-3:])
    height, width = (84, 112) if family in WIDE else expected.shape[-2:]
    for clip, pixels in zip(clips, expected, strict=True):
        assert torch.equal(clip.frames[0], statistics.unnormalise(pixels[:, :height, :width]))
        assert -0.01 < float(clip.frames.min()) < 0.1
        assert 0.9 < float(clip.frames.max()) < 1.01


@pytest.mark.parametrize("family", [f for f in available_families() if f in REFUSED])
def test_a_family_is_refused_with_the_reason(family: str) -> None:
    model = tiny_model(family)
    before = traces(model)
    reason = REFUSED[family]
    if not any(hasattr(type(module), "get_image_features") for module in model.modules()):
        reason = "expects a method 'get_image_features'"
    with pytest.raises(HostError, match=reason):
        vega3d.patch(model, "tiny-wan", host="transformers", processor=tiny_processor(family))
    assert traces(model) == before


def test_it_must_be_named() -> None:
    model = tiny_model("gemma3")
    assert not TransformersAdapter().matches(model)
    with pytest.raises(HostError, match=r"'transformers' does when it is asked to: .*host='transformers', processor="):
        find_host(model)


def test_it_needs_a_processor() -> None:
    with pytest.raises(HostError, match=r"needs the model's processor"):
        vega3d.patch(tiny_model("gemma3"), "tiny-wan", host="transformers")


def test_a_host_with_an_adapter_of_its_own_is_left_to_it() -> None:
    """Qwen-VL's own adapter fuses at the tower; this one would fuse its videos twice."""
    model, processor = tiny_qwen(), tiny_qwen_processor()
    with pytest.raises(HostError, match=r"has an adapter of its own, 'qwen_vl'"):
        vega3d.patch(model, "tiny-wan", host="transformers", processor=processor)


def test_a_model_without_weights_is_refused() -> None:
    model = tiny_model("gemma3").to("meta")
    with pytest.raises(MetaModelError, match=r"Load the weights first"):
        vega3d.patch(model, "tiny-wan", host="transformers", processor=tiny_processor("gemma3"))


def test_measuring_leaves_no_trace() -> None:
    model = tiny_model("mistral3")
    model.train()
    model.get_submodule(_tower(model)).eval()
    state = {
        name: (module.training, [*module.__dict__], [*module._forward_hooks]) for name, module in model.named_modules()
    }
    random = torch.random.get_rng_state()
    TransformersAdapter().seams(model, tiny_processor("mistral3"))
    after = {
        name: (module.training, [*module.__dict__], [*module._forward_hooks]) for name, module in model.named_modules()
    }
    assert after == state
    assert torch.equal(torch.random.get_rng_state(), random)
    # transformers' own marks and hooks, which cannot be pickled, went with it.
    pickle.dumps(model)
    assert logits(model, generic_batch("mistral3")).isfinite().all()


def _tower(model: nn.Module) -> str:
    return next(name for name, _ in model.named_modules() if name.endswith("vision_tower"))


def test_a_patched_model_is_not_measured_again() -> None:
    host = row("gemma3")
    model = hosts.patch(host.build(), **host.options)
    seam = vega3d.get_handle(model).seam
    assert TransformersAdapter().seams(model, tiny_processor("gemma3")) == [seam]
    assert vega3d.get_handle(model).branch.fired == 0


def test_padded_samples_and_scenes() -> None:
    """Idefics 3 pads a sample with black pictures; of two samples, the first has two pictures and the second one."""
    if "idefics3" not in FAMILIES:
        with pytest.raises(HostError, match="expects a method"):
            vega3d.patch(tiny_model("idefics3"), "tiny-wan", host="transformers", processor=tiny_processor("idefics3"))
        return
    host = row("idefics3")
    batch = host.batch()
    pixels = torch.cat([batch["pixel_values"], batch["pixel_values"]])
    mask = torch.cat([batch["pixel_attention_mask"]] * 2)
    pixels[1, 1], mask[1, 1] = 0, 0
    ids = torch.cat([batch["input_ids"]] * 2)
    # The second sample shows its second picture to nobody.
    at = (ids[1] == IMAGE).nonzero().flatten()[16:]
    ids[1, at] = 5
    given = {"input_ids": ids, "pixel_values": pixels, "pixel_attention_mask": mask}
    found = {}
    for images in ("separate", "scene"):
        model = hosts.patch(host.build(), images=images, **host.options)
        with watching(model) as records:
            logits(model, given)
        found[images] = [(c.kind, c.grid.t) for record in records for c in record.clips]
    assert found == {"separate": [("image", 1)] * 3, "scene": [("scene", 2), ("image", 1)]}


def pi0_parts() -> tuple[Any, Any, dict[str, Any]] | None:
    """A tiny PI0, its image processor, and an observation with two cameras."""
    import transformers

    if not hasattr(transformers, "PI0ForConditionalGeneration"):
        return None
    from vega3d_transformers.tiny import PATCH, SIDE, SIGLIP, SQUARE, VOCABULARY

    text = {
        "model_type": "gemma", "hidden_size": HIDDEN, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": VOCABULARY,
    }  # fmt: skip
    vlm = {
        "model_type": "paligemma", "text_config": text, "vision_config": {**SIGLIP, "projection_dim": HIDDEN},
        "projection_dim": HIDDEN, "image_token_id": IMAGE,
    }  # fmt: skip
    config = transformers.PI0Config(
        vlm_config=vlm, dit_config={**text, "hidden_size": 16}, chunk_size=4, max_state_dim=6, max_action_dim=6
    )
    torch.manual_seed(0)
    model = transformers.PI0ForConditionalGeneration(config).eval()
    processor = transformers.PI0ImageProcessor(
        size={"max_height": SIDE, "max_width": SIDE}, pad_size=SQUARE, image_seq_length=(SIDE // PATCH) ** 2
    )
    generator = torch.Generator().manual_seed(0)
    picture = torch.full(((SIDE // PATCH) ** 2,), IMAGE)
    ids = torch.cat([picture, picture, torch.arange(3, 8)])[None]
    observation = {
        "state": torch.rand(1, 6, generator=generator),
        "noise": torch.rand(1, 4, 6, generator=generator),
        "timestep": torch.tensor([0.5]),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": 2 * torch.rand(1, 2, 3, SIDE, SIDE, generator=generator) - 1,
        "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    return model, processor, observation


def test_pi0() -> None:
    parts = pi0_parts()
    if parts is None:
        return
    model, processor, observation = parts
    with torch.no_grad():
        before = model(**observation).logits
    hosts.patch(model, host="transformers", processor=processor)
    handle = vega3d.get_handle(model)
    assert handle.seam.entry == "model"
    with watching(model) as records, torch.no_grad():
        assert torch.equal(model(**observation).logits, before)
    assert [(c.grid.h, c.grid.w) for record in records for c in record.clips] == [(8, 8)] * 2
    # The policy learns through the branch.
    hosts.freeze_host(model)
    model.train()
    optimiser = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    for _ in range(2):
        model(**observation, actions=torch.ones(1, 4, 6)).loss.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    given = {k: v for k, v in observation.items() if k != "timestep"}
    with torch.no_grad():
        moved = model(**observation).logits
        acted = model.sample_actions(**given, num_steps=2)
        with vega3d.zeroed(model):
            assert not torch.equal(model(**observation).logits, moved)
            assert not torch.equal(model.sample_actions(**given, num_steps=2), acted)
    vega3d.unpatch(model)
    with torch.no_grad():
        assert torch.equal(model(**observation).logits, before)


def test_a_policy_that_encodes_elsewhere_raises_a_warning() -> None:
    parts = pi0_parts()
    if parts is None:
        return
    model, processor, observation = parts
    hosts.patch(model, host="transformers", processor=processor)
    seam = vega3d.get_handle(model).seam
    model.get_submodule(seam.path)._forward_hooks.clear()
    with pytest.warns(SeamMissedWarning, match="did not see 2 image"), torch.no_grad():
        model(**observation)


def test_refusals_are_host_errors() -> None:
    assert issubclass(SeamRefusedError, HostError)
