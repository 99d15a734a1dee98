"""The generic adapter on the families that it patches, and on those that it refuses."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hosts
import numpy as np
import pytest
import torch
import transformers
from hosts import logits
from peft import LoraConfig, PeftModel, get_peft_model
from rows.generic import (
    FAMILIES,
    FRAMES,
    GRIDS,
    KNOWN,
    LATE,
    OLD,
    PACKED,
    VIDEOS,
    WIDE,
    generic_batch,
    picture_of,
    prepared_video,
    prompt,
    row,
)
from rows.host import random_picture, random_video
from torch import Tensor, nn
from typer.testing import CliRunner

import vega3d
from vega3d_llava_video.tiny_transformers import tiny_tokenizer
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.clips import Clip
from vega3d_plugin.contracts.errors import (
    AlignmentError,
    HostError,
    MetaModelError,
    SeamMissedWarning,
    UnknownNameError,
)
from vega3d_plugin.contracts.pixel_statistics import CLIP
from vega3d_plugin.contracts.seams import SeamCall
from vega3d_plugin.evaluation.doctor.examine import examine
from vega3d_plugin.hosts.finding import find_host
from vega3d_plugin.hosts.hooks import NoteMethod
from vega3d_plugin.hosts.probing import watching
from vega3d_qwen_vl.pixels import Packing
from vega3d_qwen_vl.tiny import tiny_model as tiny_qwen
from vega3d_qwen_vl.tiny import tiny_processor as tiny_qwen_processor
from vega3d_transformers.adapter import TransformersAdapter
from vega3d_transformers.measuring import SeamRefusedError, _check_order
from vega3d_transformers.packed import PackedReader
from vega3d_transformers.reader import Layout
from vega3d_transformers.tiny import (
    HIDDEN,
    IMAGE,
    PATCH,
    SIDE,
    SIGLIP,
    SQUARE,
    VOCABULARY,
    available_families,
    tiny_model,
    tiny_processor,
)

#: Families that are refused, and why.
REFUSED = {
    "aria": "not in raster order",
    "blip_2": "not in raster order",
    "idefics2": "not in raster order",
    "kosmos2": "not in raster order",
    "instructblip": "asks for 'qformer_input_ids'",
    "chameleon": "statistics do not undo",
    "llama4": "without tokens in it",
    "gemma4": "packed patches",
    "lfm2_vl": "packed patches",
    "paddleocr_vl": "packs patches in another way",
}
#: Families of whose classes transformers 4.50 has none.
NEWER = {
    "internvl", "cohere2_vision", "janus", "ovis2", "deepseek_vl", "lighton_ocr", "glm4v", "glm4v_moe", "glm46v",
    "video_llama_3", "llama4", "gemma4", "paddleocr_vl", "lfm2_vl",
}  # fmt: skip


def newer(test: Callable[..., None]) -> Callable[..., None] | None:
    """Of classes that transformers 4.50 lacks, which has a test of its own: there the test does not exist."""
    return None if OLD else test


def traces(model: nn.Module) -> dict[str, tuple[bool, list[str], list[int]]]:
    """What running a model could leave behind in its modules."""
    return {name: (m.training, [*m.__dict__], [*m._forward_hooks]) for name, m in model.named_modules()}


def clips_of(model: nn.Module, batch: dict[str, Any]) -> list[Clip]:
    with watching(model) as records:
        logits(model, batch)
    return [clip for record in records for clip in record.clips]


# Which families fit.


def test_every_family_was_tried() -> None:
    assert {*KNOWN} == {*REFUSED, *GRIDS}
    patched = {KNOWN[family].prefix for family in GRIDS} | {"PI0"}
    assert {f"{prefix}ForConditionalGeneration" for prefix in patched} == {*TransformersAdapter.classes}


def test_this_transformers_has_the_families_that_it_should() -> None:
    """So that no family goes untested for want of its class."""
    assert {*KNOWN} - {*available_families()} == (NEWER if OLD else set())
    assert {*FAMILIES} == {*GRIDS} - (NEWER | LATE if OLD else set())
    assert hasattr(transformers, "PI0ForConditionalGeneration") != OLD


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fused_once_and_sees_its_pictures(family: str) -> None:
    host = row(family)
    model, batch = host.build(), host.batch()
    before = logits(model, batch)
    hosts.patch(model, **host.options)
    with watching(model) as records:
        assert torch.equal(logits(model, batch), before)
    clips = [clip for record in records for clip in record.clips if clip.kind == "image"]
    assert [(c.grid.t, c.grid.h, c.grid.w) for c in clips] == [(1, *GRIDS[family])] * 2
    if family in PACKED:
        expected = [as_tensor(picture_of(family, index)) for index in range(2)]
    else:
        statistics = vega3d.get_handle(model).seam.statistics
        pixels = batch["pixel_values"].reshape(-1, *batch["pixel_values"].shape[-3:])
        height, width = (84, 112) if family in WIDE else pixels.shape[-2:]
        expected = [statistics.unnormalise(picture)[:, :height, :width] for picture in pixels]
    for clip, picture in zip(clips, expected, strict=True):
        torch.testing.assert_close(clip.frames, picture[None], rtol=0, atol=1e-5)
        assert -0.01 < float(clip.frames.min()) < 0.1
        assert 0.9 < float(clip.frames.max()) < 1.01


def as_tensor(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("family", [family for family in available_families() if family not in FAMILIES])
def test_a_family_is_refused_with_the_reason(family: str) -> None:
    model = tiny_model(family)
    before = traces(model)
    reason = "expects a method 'get_image_features', not found on" if family in LATE else REFUSED[family]
    with pytest.raises(HostError, match=reason):
        vega3d.patch(model, "tiny-wan", host="transformers", processor=tiny_processor(family))
    assert traces(model) == before
    assert not vega3d.is_patched(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_finds_the_methods_signature(family: str) -> None:
    """transformers looks at it to find out which arguments an encoder takes."""
    model = tiny_model(family)
    before = {name: signatures(module) for name, module in model.named_modules()}
    hosts.patch(model, **row(family).options)
    owner = model.get_submodule(vega3d.get_handle(model).seam.entry)
    assert isinstance(owner.get_image_features, NoteMethod)
    assert owner.get_image_features.__name__ == "get_image_features"
    assert {name: signatures(module) for name, module in model.named_modules() if ".vega3d" not in name} == before


def signatures(module: nn.Module) -> list[inspect.Signature | None]:
    methods = (getattr(module, name, None) for name in ("get_image_features", "get_video_features"))
    return [inspect.signature(method) if callable(method) else None for method in methods]


# The order of tokens.

GRID = 16
RASTER = torch.arange(GRID * GRID)


def tokens_in(order: Tensor, shift: int = 0) -> Callable[[Tensor], Tensor]:
    """A host whose tokens see their own cell of 8 pixels, moved by some, and a little of everything."""

    def show(lit: Tensor) -> Tensor:
        moved = lit.float().roll((shift, shift), (0, 1))
        cells = nn.functional.avg_pool2d(moved[None], 8)[0].flatten()
        return (cells + 0.3 * lit.float().mean())[order, None].repeat(1, HIDDEN)

    return show


def blocks_of(side: int) -> Tensor:
    """The order of tokens that come block by block, as windows and Qwen-VL's unmerged patches do."""
    grid = RASTER.reshape(GRID // side, side, GRID // side, side)
    return grid.permute(0, 2, 1, 3).flatten()


@pytest.mark.parametrize("shift", [0, 4, -4])
def test_raster_order_is_recognised(shift: int) -> None:
    _check_order(tokens_in(RASTER, shift), (8 * GRID, 8 * GRID), Layout(0, GRID, GRID))


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (RASTER.reshape(GRID, GRID).T.flatten(), "ordered by columns"),
        (blocks_of(2), "not in raster order"),
        (blocks_of(4), "not in raster order"),
        (blocks_of(8), "not in raster order"),
        (RASTER.reshape(GRID, GRID).flip(1).flatten(), "not in raster order"),
        (torch.randperm(GRID * GRID, generator=torch.Generator().manual_seed(0)), "not in raster order"),
        (RASTER // 64 * 64, "not in raster order"),
        (RASTER * 0, "not in raster order"),
    ],
    ids=["columns", "blocks of 2", "blocks of 4", "blocks of 8", "mirrored", "shuffled", "too few", "pooled"],
)
def test_another_order_is_refused(order: Tensor, reason: str) -> None:
    with pytest.raises(SeamRefusedError, match=reason):
        _check_order(tokens_in(order), (8 * GRID, 8 * GRID), Layout(0, GRID, GRID))


def test_tokens_that_do_not_look_are_refused() -> None:
    size = (8 * GRID, 8 * GRID)
    with pytest.raises(SeamRefusedError, match="the same whatever the picture shows"):
        _check_order(lambda lit: torch.ones(GRID * GRID, HIDDEN), size, Layout(0, GRID, GRID))
    with pytest.raises(SeamRefusedError, match=r"grid of 3 x 16 tokens is too coarse .* expected 4 x 4"):
        _check_order(tokens_in(RASTER), size, Layout(0, 3, GRID))


# Rows of patches.


@newer
@pytest.mark.parametrize("family", PACKED)
def test_packed_pictures_of_several_sizes(family: str) -> None:
    processor, (h, w) = tiny_processor(family), GRIDS[family]
    pictures = [random_picture(*size, seed=seed) for seed, size in enumerate([(56, 112), (112, 56), (112, 112)])]
    prepared = dict(processor(images=pictures, return_tensors="pt"))
    batch = prompt(family, [(IMAGE, h * w), (IMAGE, h * w), (IMAGE, 2 * h * w)], prepared)
    clips = clips_of(hosts.patch(tiny_model(family), **row(family).options), batch)
    assert [(c.kind, c.grid.t, c.grid.h, c.grid.w) for c in clips] == [
        ("image", 1, h, w), ("image", 1, w, h), ("image", 1, 2 * h, w)
    ]  # fmt: skip
    for clip, picture in zip(clips, pictures, strict=True):
        torch.testing.assert_close(clip.frames, as_tensor(picture)[None], rtol=0, atol=1e-5)


@newer
@pytest.mark.parametrize("family", PACKED)
def test_packed_views_are_joined(family: str) -> None:
    """Two views for the first prompt, one for the second."""
    processor, (h, w) = tiny_processor(family), GRIDS[family]
    prepared = dict(processor(images=[picture_of(family, seed) for seed in range(3)], return_tensors="pt"))
    first, second = (prompt(family, [(IMAGE, h * w)] * views, prepared) for views in (2, 1))
    short = first["input_ids"].shape[1] - second["input_ids"].shape[1]
    batch = dict(first)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in first:
            batch[name] = torch.cat([first[name], nn.functional.pad(second[name], (0, short))])
    clips = clips_of(hosts.patch(tiny_model(family), images="scene", context="views", **row(family).options), batch)
    assert [(c.kind, c.grid.t) for c in clips] == [("scene", 2), ("image", 1)]


@newer
@pytest.mark.parametrize("family", PACKED)
def test_a_packed_video(family: str) -> None:
    prepared = prepared_video(family)
    if family.startswith("glm"):
        # Two frames in a patch; it has words, its times, between its frames.
        grid, media = (FRAMES // 2, 2, 4), [(IMAGE, 8)] * 2
        batch = prompt(family, media, prepared, kinds=(2, 2))
    else:
        grid, media = VIDEOS[family], [(tiny_model(family).config.video_token_id, 32)]
        batch = prompt(family, media, prepared)
    model = tiny_model(family)
    before, said = logits(model, batch), model.generate(**batch, max_new_tokens=3)
    hosts.patch(model, **row(family).options)
    assert torch.equal(logits(model, batch), before)
    assert torch.equal(model.generate(**batch, max_new_tokens=3), said)
    (clip,) = clips_of(model, batch)
    frames = random_video(FRAMES, *WIDE[family]).float() / 255
    torch.testing.assert_close(clip.frames, frames, rtol=0, atol=1e-5)
    assert (clip.kind, (clip.grid.t, clip.grid.h, clip.grid.w)) == ("video", grid)
    # And through the branch to the answer.
    vega3d.unpatch(model)
    hosts.patch(model, init="released", **row(family).options)
    fused = logits(model, batch)
    with vega3d.zeroed(model):
        assert not torch.equal(logits(model, batch), fused)


@newer
def test_rows_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that says how it packs patches, and packs them otherwise."""
    processor = tiny_processor("video_llama_3")
    processor.merge_size = 2
    patchify = type(processor).patchify

    def in_raster_order(self: Any, images: Tensor, *args: Any, **options: Any) -> Any:
        return patchify(self, images, *args, **{**options, "merge_size": 1})

    monkeypatch.setattr(type(processor), "patchify", in_raster_order)
    with pytest.raises(SeamRefusedError, match=r"another order than Qwen-VL's does: .* off by 0\.\d+ on average"):
        vega3d.patch(tiny_model("video_llama_3"), "tiny-wan", host="transformers", processor=processor)


@newer
def test_a_processor_that_does_not_say_how_it_packs_is_refused() -> None:
    processor = tiny_processor("glm4v")
    processor.patch_size = None
    told = SimpleNamespace(image_processor=lambda **given: tiny_processor("glm4v")(**given))
    told.image_processor.image_mean, told.image_processor.image_std = processor.image_mean, processor.image_std
    with pytest.raises(SeamRefusedError, match=r"does not say how it packs patches \(patch_size, "):
        vega3d.patch(tiny_model("glm4v"), "tiny-wan", host="transformers", processor=told)


@newer
def test_pixels_that_are_no_rows_are_named() -> None:
    model = hosts.patch(tiny_model("glm4v"), **row("glm4v").options)
    with pytest.raises(HostError, match=r"expects rows of patches .* ends in 'grid_thw', found \[1, 3, 56, 112\]"):
        model.model.get_image_features(torch.rand(1, 3, 56, 112), torch.tensor([[1, 4, 8]]))


def test_rows_that_do_not_fit_their_grid_are_named() -> None:
    """As of a video processor that packs otherwise than the image processor, which was measured."""
    reader = PackedReader("transformers", CLIP, "merger", packing=Packing(14, 2, 2))
    notes = reader.pictures(nn.Identity(), torch.rand(32, 588), {"video_grid_thw": torch.tensor([[1, 4, 8]])}, True)
    call = SeamCall(nn.Identity(), (), {}, torch.rand(8, HIDDEN), None, False, "", notes)
    with pytest.raises(AlignmentError, match=r"Packed pixels \[32, 588\] do not fit .* expected \[32, 1176\]"):
        reader.read(call)


# Bad input.


def test_it_must_be_named() -> None:
    model = tiny_model("gemma3")
    assert not TransformersAdapter().matches(model)
    with pytest.raises(HostError, match=r"'transformers' can\. Name it: .*host='transformers', processor="):
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
    before = traces(model)
    random = torch.random.get_rng_state()
    TransformersAdapter().seams(model, tiny_processor("mistral3"))
    assert traces(model) == before
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


@newer
def test_padded_samples_and_scenes() -> None:
    """Idefics 3 pads a sample with black pictures; of two samples, the first has two pictures and the second one."""
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
        model = hosts.patch(host.build(), images=images, context="views", **host.options)
        with watching(model) as records:
            logits(model, given)
        found[images] = [(c.kind, c.grid.t) for record in records for c in record.clips]
    assert found == {"separate": [("image", 1)] * 3, "scene": [("scene", 2), ("image", 1)]}


# A policy: PI0 holds a PaliGemma, whose method it calls with the pictures of its cameras.


def pi0_parts() -> tuple[Any, Any, dict[str, Any]]:
    """A tiny PI0, its image processor, and an observation with two cameras."""
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


@newer
def test_pi0() -> None:
    model, processor, observation = pi0_parts()
    with torch.no_grad():
        before = model(**observation).logits
    hosts.patch(model, host="transformers", processor=processor)
    handle = vega3d.get_handle(model)
    assert handle.seam.entry == "model"
    with watching(model) as records, torch.no_grad():
        assert torch.equal(model(**observation).logits, before)
    clips = [clip for record in records for clip in record.clips]
    assert [(c.grid.h, c.grid.w) for c in clips] == [(8, 8)] * 2
    for clip, pixels in zip(clips, observation["pixel_values"][0], strict=True):
        torch.testing.assert_close(clip.frames[0], (pixels + 1) / 2)
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


@newer
def test_a_policy_that_encodes_elsewhere_raises_a_warning() -> None:
    model, processor, observation = pi0_parts()
    hosts.patch(model, host="transformers", processor=processor)
    seam = vega3d.get_handle(model).seam
    model.get_submodule(seam.path)._forward_hooks.clear()
    with pytest.warns(SeamMissedWarning, match="did not see 2 image"), torch.no_grad():
        model(**observation)


# `vega3d doctor`, and a saved branch.


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Mistral 3 and its whole processor."""
    folder = tmp_path_factory.mktemp("mistral3")
    special = ("<pad>", "<s>", "</s>", "<image>", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = tiny_tokenizer(special)
    image = tokenizer.convert_tokens_to_ids("<image>")
    tiny_model("mistral3", vocabulary=len(tokenizer), image=image).save_pretrained(folder)
    processor = transformers.PixtralProcessor(
        image_processor=tiny_processor("mistral3"),
        tokenizer=tokenizer,
        patch_size=PATCH,
        spatial_merge_size=2,
        image_token="<image>",
    )
    processor.save_pretrained(folder)
    return folder


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    assert result.stdout, result.output
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_doctor_checks_a_host_that_is_named(mistral: Path) -> None:
    code, checks = doctor(str(mistral), "--host", "transformers")
    assert {name: check["status"] for name, check in checks.items() if check["status"] != "PASS"} == {}
    assert code == 0
    assert checks["host"]["measured"].startswith("transformers, seam ")
    assert "patch this host with it" in checks["processor"]["measured"]
    assert "image: 1 call, 1x4x4 tokens" in checks["seam"]["measured"]


def test_doctor_says_how_to_name_it(mistral: Path) -> None:
    code, checks = doctor(str(mistral))
    assert code == 1
    assert "'transformers' can. Name it" in checks["host"]["measured"]


def test_doctor_wants_the_processor(mistral: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(mistral / name)
    code, checks = doctor(str(tmp_path), "--host", "transformers")
    assert code == 1
    assert "needs the model's processor" in checks["host"]["measured"]
    assert "has no processor" in checks["host"]["advice"]
    code, checks = doctor(str(tmp_path), "--host", "transformers", "--processor", str(mistral))
    assert (code, checks["unpatch"]["status"]) == (0, "PASS")


def test_doctor_gives_the_reason_of_a_refusal() -> None:
    checks = list(examine(tiny_model("aria"), tiny_processor("aria"), host="transformers"))
    assert "The 4 x 4 tokens are not in raster order" in checks[0].measured
    assert [check.status for check in checks] == ["FAIL"] + ["SKIP"] * (len(checks) - 1)


def test_doctor_knows_no_such_host(mistral: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(mistral), "--host", "transformer"])
    assert isinstance(result.exception, UnknownNameError) or "transformers" in result.output
    assert result.exit_code != 0


def test_a_saved_branch_names_its_host(tmp_path: Path) -> None:
    """Who names the host once need not do so again to load what was trained."""
    host = row("gemma3")
    model, batch = hosts.patch(host.build(), init="released", **host.options), host.batch()
    vega3d.save_pretrained(model, tmp_path)
    again = vega3d.load_pretrained(host.build(), tmp_path, processor=host.options["processor"])
    assert vega3d.get_handle(again).host == "transformers"
    assert torch.equal(logits(again, batch), logits(model, batch))
    with pytest.raises(HostError, match="needs the model's processor"):
        vega3d.load_pretrained(host.build(), tmp_path)


@pytest.mark.parametrize("order", ["patch first", "peft first"])
def test_lora_in_both_orders(order: str, tmp_path: Path) -> None:
    """What test_peft.py tests of hosts that are found by themselves."""
    host = row("gemma3")
    batch, targets = host.batch(), r".*language_model.*\.(q|v)_proj"
    if order == "patch first":
        config = LoraConfig(r=4, target_modules=targets, modules_to_save=["vega3d"])
        model = get_peft_model(hosts.patch(host.build(), **host.options), config)
    else:
        model = hosts.patch(get_peft_model(host.build(), LoraConfig(r=4, target_modules=targets)), **host.options)
    hosts.train(model, batch, steps=2)
    expected = logits(model, batch)
    with vega3d.zeroed(model):
        assert not torch.equal(logits(model, batch), expected)
    model.save_pretrained(tmp_path)
    again = vega3d.load_pretrained(host.build(), tmp_path, processor=host.options["processor"])
    again = PeftModel.from_pretrained(again, tmp_path)
    assert torch.equal(logits(again.eval(), batch), expected)


def test_refusals_are_host_errors() -> None:
    assert issubclass(SeamRefusedError, HostError)
