"""What the seam of OpenVLA and OpenVLA-OFT hands to the branch, and everything that OFT does around it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hosts
import numpy as np
import pytest
import torch
import transformers
from doubles import openvla as double
from hosts import freeze_host, logits, train
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from rows.openvla import (
    GRID,
    HALF,
    IMAGENET,
    OFT,
    SIDE,
    available_models,
    available_ofts,
    batch_of,
    pictures,
    real_model,
    real_names,
    real_processor,
    stacked,
)  # fmt: skip
from torch import Tensor, nn
from transformers import DynamicCache
from typer.testing import CliRunner
from watching import Watching

import vega3d
from vega3d_plugin.branch.branch import GenerativeBranch
from vega3d_plugin.checkpoints import reading as checkpoint
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts import errors
from vega3d_plugin.contracts.errors import SeamMissedWarning
from vega3d_plugin.evaluation.doctor.checks import check_branch
from vega3d_plugin.evaluation.doctor.examine import diagnose, examine
from vega3d_plugin.hosts.finding import find_host
from vega3d_plugin.hosts.probing import make_probe

Build = Callable[..., nn.Module]
TOKENS = GRID[1] * GRID[2]
OPEN = {"name": "token_gated_residual", "init": "released", "residual_scale": 1.0}


@pytest.fixture(params=available_models().items(), ids=lambda item: item[0])
def build(request: pytest.FixtureRequest) -> Build:
    """OpenVLA before OFT."""
    return request.param[1]


@pytest.fixture(params=available_ofts(), ids=lambda oft: oft.name)
def oft(request: pytest.FixtureRequest) -> OFT:
    return request.param


def watch(model: nn.Module, **settings: Any) -> tuple[nn.Module, Watching]:
    prior = Watching()
    return vega3d.patch(model, prior, projector=hosts.PROJECTOR, **settings), prior


def processor(*statistics: Any) -> Any:
    """What is read of a PrismaticProcessor."""
    chosen = statistics or (IMAGENET, HALF)
    images = SimpleNamespace(means=[list(s.mean) for s in chosen], stds=[list(s.std) for s in chosen])
    return SimpleNamespace(image_processor=images)


def same(frames: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-6)


# Frames and tokens.


def test_frames_come_back_exactly(build: Build) -> None:
    model, prior = watch(build())
    shown = pictures(2)
    logits(model, batch_of(shown))
    assert len(prior.seen) == 2
    same(torch.cat(prior.seen), shown[:, 0])
    assert vega3d.get_handle(model).seam.statistics == IMAGENET
    assert vega3d.get_handle(model).seam.statistics_source == "vision tower"


@pytest.mark.parametrize("images", [1, 2, 3])
def test_images_of_an_observation_are_clips_of_their_own(oft: OFT, images: int) -> None:
    model, prior = watch(oft.model(images))
    shown = pictures(2, images)
    logits(model, oft.batch(shown))
    assert [len(frames) for frames in prior.seen] == [1] * (2 * images)
    same(torch.cat(prior.seen), shown.flatten(0, 1))


@pytest.mark.parametrize("images", [2, 3])
def test_or_the_views_of_one_clip(oft: OFT, images: int) -> None:
    model, prior = watch(oft.model(images), images="scene")
    shown = pictures(2, images)
    with vega3d.record_gates(model) as gates:
        logits(model, oft.batch(shown))
    same(torch.stack(prior.seen), shown)
    assert [tuple(gate.shape) for gate in gates] == [(images, *GRID[1:])] * 2


def test_each_clip_has_the_tokens_of_its_image(oft: OFT) -> None:
    """Sample after sample, image after image, in raster order."""
    model, shown = oft.model(2), pictures(2, 2)
    alone = oft.model(1)
    expected = [
        alone.projector(alone.vision_backbone(stacked(image[None, None])))[0] for sample in shown for image in sample
    ]
    watch(model)
    seen: list[Tensor] = []
    vega3d.get_handle(model).branch.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(model, oft.batch(shown))
    torch.testing.assert_close(seen[0], torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_fused_tokens_go_back_where_they_came_from(oft: OFT) -> None:
    model, batch = oft.model(2), oft.batch(pictures(2, 2))
    watch(model)
    branch = vega3d.get_handle(model).branch
    out: list[Tensor] = []
    marks = torch.arange(2 * 2 * TOKENS, dtype=torch.float32)[:, None].expand(-1, 32)
    branch.register_forward_hook(lambda module, args, output: marks)
    model.projector.register_forward_hook(lambda module, args, output: out.append(output))
    logits(model, batch)
    assert torch.equal(out[0], marks.reshape(2, 2 * TOKENS, 32))


def test_a_single_tower(build: Build) -> None:
    """Prismatic models with SigLIP alone: three channels."""
    model, prior = watch(build(fused=False))
    shown = pictures(2)
    logits(model, {**batch_of(shown), "pixel_values": stacked(shown, HALF)})
    same(torch.cat(prior.seen), shown[:, 0])


def test_arguments_by_position(build: Build) -> None:
    model, prior = watch(build())
    batch = batch_of(pictures())
    with torch.no_grad():
        model(batch["input_ids"], batch["attention_mask"], batch["pixel_values"])
    assert len(prior.seen) == 1


def test_statistics_of_the_processor(build: Build) -> None:
    model, prior = watch(build(), processor=processor(HALF, IMAGENET))
    shown = pictures()
    logits(model, {**batch_of(shown), "pixel_values": stacked(shown, HALF, IMAGENET)})
    same(prior.seen[0], shown[0])
    assert vega3d.get_handle(model).seam.statistics_source == "processor"


# What OFT adds: proprio token, heads, FiLM.


def extras(oft: OFT, head: str) -> dict[str, Any]:
    """Arguments of ``predict_action`` for a head, and the robot's state."""
    given: dict[str, Any] = {"proprio": torch.linspace(-1, 1, oft.proprio).numpy()}
    given["proprio_projector"] = oft.proprio_projector()
    if head == "l1":
        given["action_head"] = oft.l1_head()
    if head == "diffusion":
        given["action_head"], given["noisy_action_projector"] = oft.diffusion_head(), oft.noisy_projector()
        given["action_head"].noise_scheduler.set_timesteps(5)
    return given


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("head", ["tokens", "l1", "diffusion"])
def test_predict_action_with_every_head(oft: OFT, head: str, images: int) -> None:
    model, batch, given = oft.model(images), oft.batch(pictures(images=images)), extras(oft, head)

    def act() -> Tensor:
        torch.manual_seed(0)
        return oft.act(model, batch, **given)

    before = act()
    prior = watch(model)[1]
    assert torch.equal(act(), before)
    assert len(prior.seen) == images  # once, not once per step of the diffusion
    vega3d.unpatch(model)
    assert torch.equal(act(), before)
    watch(model, fusion=OPEN)
    moved = act()
    assert moved.shape == before.shape
    assert not torch.equal(moved, before)


def forward_extras(oft: OFT, head: str) -> dict[str, Any]:
    """Arguments of the forward that ``finetune.py`` gives for a head."""
    given: dict[str, Any] = {"output_hidden_states": True, "proprio": torch.linspace(-1, 1, oft.proprio)[None]}
    given["proprio_projector"] = oft.proprio_projector()
    if head == "diffusion":
        given["noisy_actions"] = torch.linspace(-1, 1, oft.actions[0] * oft.actions[1]).reshape(1, *oft.actions)
        given["noisy_action_projector"] = oft.noisy_projector()
        given["diffusion_timestep_embeddings"] = oft.diffusion_head().time_encoder(torch.tensor([7.0]))[:, None]
    return given


@pytest.mark.parametrize("head", ["l1", "diffusion"])
def test_training_with_every_head(oft: OFT, head: str) -> None:
    """As ``finetune.py`` does it: the loss is the head's, on the hidden states of the action tokens."""
    model, batch, given = oft.model(2), oft.batch(pictures(images=2)), forward_extras(oft, head)
    made = oft.l1_head() if head == "l1" else oft.diffusion_head()
    before = logits(model, {**batch, **given})
    hosts.patch(model)
    assert torch.equal(logits(model, {**batch, **given}), before)
    freeze_host(model)
    parameters = [*vega3d.get_handle(model).parameters(), *made.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    visual = 2 * TOKENS + 1 + (head == "diffusion")
    model.train()
    for _ in range(2):
        hidden = model(**batch, **given).hidden_states[-1]
        acted = hidden[:, visual:-1][batch["labels"][:, 1:] >= oft.first_action].reshape(1, oft.actions[0], -1)
        guess = made.predict_action(acted) if head == "l1" else made.predict_noise(acted)
        guess.abs().mean().backward()
        assert all(p.grad is not None for p in vega3d.get_handle(model).parameters())
        optimiser.step()
        optimiser.zero_grad()
    assert not torch.equal(logits(model.eval(), {**batch, **given}), before)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("order", ["film first", "patch first"])
def test_film(oft: OFT, order: str, images: int) -> None:
    """The wrapper replaces the vision backbone; a hook there would be lost."""
    plain, batch = oft.model(images), oft.batch(pictures(images=images))

    def wrap(model: Any) -> None:
        torch.manual_seed(1)
        model.vision_backbone = oft.film(model.vision_backbone, 32)

    wrap(plain)
    film = {**batch, "use_film": True}
    before, acted = logits(plain, film), oft.act(plain, batch, use_film=True)
    model = oft.model(images)
    if order == "film first":
        wrap(model)
    prior = watch(model)[1]
    if order == "patch first":
        wrap(model)
    assert torch.equal(logits(model, film), before)
    assert torch.equal(oft.act(model, batch, use_film=True), acted)
    assert len(prior.seen) == 2 * images
    same(torch.cat(prior.seen[:images]), pictures(images=images)[0])
    vega3d.unpatch(model)
    assert torch.equal(logits(model, film), before)


# Earlier observations.


def test_the_last_observations_are_the_clip(oft: OFT) -> None:
    model, prior = watch(oft.model(2), history=3)
    for step in range(4):
        oft.act(model, oft.batch(pictures(images=2, seed=step)))
    assert [len(frames) for frames in prior.seen] == [1, 1, 2, 2, 3, 3, 3, 3]
    expected = torch.cat([pictures(images=2, seed=step) for step in (1, 2, 3)])
    same(prior.seen[-2], expected[:, 0])
    same(prior.seen[-1], expected[:, 1])
    vega3d.get_handle(model).reset()
    oft.act(model, oft.batch(pictures(images=2)))
    assert [len(frames) for frames in prior.seen[-2:]] == [1, 1]


def test_earlier_observations_of_a_scene(oft: OFT) -> None:
    model, prior = watch(oft.model(2), history=2, images="scene", init="released")
    for step in range(3):
        oft.act(model, oft.batch(pictures(images=2, seed=step)))
    assert [len(frames) for frames in prior.seen] == [2, 4, 4]
    same(prior.seen[-1], torch.cat([pictures(images=2, seed=1)[0], pictures(images=2, seed=2)[0]]))


def test_the_prior_sees_time_in_the_context_of_views(build: Build) -> None:
    """Not in that of a frame, where each picture is alone; that of a video takes no single picture."""
    first, other, last = (batch_of(pictures(seed=seed)) for seed in range(3))
    for context, sees in (("frame", False), ("views", True)):
        with nullcontext() if sees else pytest.warns(vega3d.Vega3dWarning, match="history=2 has no effect with"):
            model = hosts.patch(build(), history=2, context=context, fusion=OPEN)
        answers = []
        for earlier in (first, other):
            vega3d.get_handle(model).reset()
            logits(model, earlier)
            answers.append(logits(model, last))
        assert torch.equal(*answers) != sees
    with pytest.raises(errors.FramesError, match=r"context 'video' needs a video\. Use context='frame' or 'views'"):
        logits(hosts.patch(build(), history=2, context="video"), first)


def test_predict_action_of_openvla_looks_once_per_observation(build: Build) -> None:
    model, prior = watch(build(), history=2)
    for step in range(3):
        batch = batch_of(pictures(seed=step))
        model.predict_action(**batch, unnorm_key="bridge", do_sample=False)
    assert [len(frames) for frames in prior.seen] == [1, 2, 2]


def test_no_history_unless_asked_and_none_in_training(oft: OFT) -> None:
    plain, prior = watch(oft.model(2))
    for step in range(2):
        oft.act(plain, oft.batch(pictures(images=2, seed=step)))
    assert [len(frames) for frames in prior.seen] == [1] * 4
    model, prior = watch(oft.model(2), history=3)
    freeze_host(model)
    train(model, oft.batch(pictures(images=2)), steps=2)
    assert [len(frames) for frames in prior.seen] == [1] * 4


def test_no_history_in_validation(oft: OFT) -> None:
    """In eval mode, without gradients: rows of a data set, between two steps of an episode."""
    model, prior = watch(oft.model(2), history=3)
    oft.act(model, oft.batch(pictures(images=2)))
    for rows in (1, 2):
        logits(model, oft.batch(pictures(rows, images=2, seed=rows)))
    oft.act(model, oft.batch(pictures(images=2, seed=3)))
    assert [len(frames) for frames in prior.seen] == [1, 1] + [1] * 2 + [1] * 4 + [2, 2]
    same(prior.seen[-2], torch.stack([pictures(images=2)[0, 0], pictures(images=2, seed=3)[0, 0]]))


def test_no_history_for_several_rows_labels_or_gradients(build: Build) -> None:
    model, prior = watch(build(), history=3)
    one, two = batch_of(pictures()), batch_of(pictures(2))
    for given in (two, two, {**one, "labels": one["input_ids"]}, {**one, "labels": one["input_ids"]}):
        logits(model, given)
    for _ in range(2):
        model(**one)
    assert [len(frames) for frames in prior.seen] == [1] * 8
    for _ in range(2):
        logits(model, one)
    assert [len(frames) for frames in prior.seen[-2:]] == [1, 2]


# LoRA as OFT applies it.


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules="all-linear", init_lora_weights="gaussian")


def test_the_lines_for_finetune_and_for_evaluation(oft: OFT, tmp_path: Path) -> None:
    """``finetune.py``: LoRA, then patch, then FiLM; it saves the adapter and merges it into a model without branch."""
    batch = {**oft.batch(pictures(images=2)), "use_film": True}
    vla = get_peft_model(oft.model(2), lora())
    hosts.patch(vla)
    torch.manual_seed(1)
    vla.model.vision_backbone = oft.film(vla.model.vision_backbone, 32)
    linears = [name for name, _ in vla.named_modules() if name.endswith("lora_A")]
    assert any("projector.fc1" in name for name in linears)
    assert not any("vega3d" in name for name in linears)
    branch = vega3d.get_handle(vla).branch
    trained = {id(p) for p in vla.parameters() if p.requires_grad}
    assert {id(p) for p in branch.parameters()} <= trained
    train(vla, batch, steps=2)
    acted = oft.act(vla, batch, use_film=True)
    with vega3d.zeroed(vla):
        assert not torch.equal(oft.act(vla, batch, use_film=True), acted)
    vla.save_pretrained(tmp_path / "lora_adapter")
    torch.save(vla.vision_backbone.state_dict(), tmp_path / "vision_backbone.pt")
    # Its own merging, and the FiLM backbone as `get_vla` loads it.
    merged = PeftModel.from_pretrained(oft.model(2), tmp_path / "lora_adapter").merge_and_unload().eval()
    evaluated = get_peft_model(merged, lora())
    evaluated.model.vision_backbone = oft.film(evaluated.vision_backbone, 32)
    evaluated.model.vision_backbone.load_state_dict(torch.load(tmp_path / "vision_backbone.pt", weights_only=True))
    evaluated = evaluated.model
    assert not vega3d.is_patched(evaluated)
    # The line for evaluation.
    vega3d.load_pretrained(evaluated, tmp_path / "lora_adapter")
    torch.testing.assert_close(oft.act(evaluated, batch, use_film=True), acted, rtol=1e-3, atol=1e-4)


def test_the_lines_to_go_on_training(oft: OFT, tmp_path: Path) -> None:
    """``finetune.py --resume``: a new LoRA on the merged model, which has no branch."""
    batch = oft.batch(pictures(images=2))
    vla = hosts.patch(get_peft_model(oft.model(2), lora()))
    train(vla, batch, steps=2)
    vla.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(oft.model(2), tmp_path).merge_and_unload()
    resumed = vega3d.load_pretrained(get_peft_model(merged, lora()), tmp_path)
    before = oft.act(resumed.eval(), batch)
    torch.testing.assert_close(before, oft.act(vla, batch), rtol=1e-3, atol=1e-4)
    train(resumed, batch, steps=2)
    resumed.save_pretrained(tmp_path / "again")
    saved, mine = checkpoint.read_saved(tmp_path / "again"), vega3d.get_handle(resumed).branch.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in saved.tensors.items())
    assert any(not torch.equal(mine[name], tensor) for name, tensor in checkpoint.read_saved(tmp_path).tensors.items())


def test_patch_before_lora_must_save_the_branch(oft: OFT) -> None:
    batch = oft.batch(pictures(images=2))
    with pytest.raises(errors.FrozenBranchError, match="modules_to_save"):
        train(get_peft_model(hosts.patch(oft.model(2)), lora()), batch)
    config = lora()
    config.modules_to_save = ["vega3d"]
    model = get_peft_model(hosts.patch(oft.model(2)), config)
    before = oft.act(model.eval(), batch)
    train(model, batch, steps=2)
    assert all(p.requires_grad for p in vega3d.get_handle(model).parameters())
    assert not torch.equal(oft.act(model, batch), before)


@pytest.mark.parametrize("order", ["lora first", "patch first"])
def test_merge_and_unload(oft: OFT, order: str) -> None:
    batch, config = oft.batch(pictures(images=2)), lora()
    if order == "lora first":
        model = hosts.patch(get_peft_model(oft.model(2), config))
    else:
        config.modules_to_save = ["vega3d"]
        model = get_peft_model(hosts.patch(oft.model(2)), config)
    train(model, batch, steps=2)
    expected = oft.act(model, batch)
    merged = model.merge_and_unload()
    assert isinstance(vega3d.get_handle(merged).branch, GenerativeBranch)
    torch.testing.assert_close(oft.act(merged, batch), expected, rtol=1e-3, atol=1e-4)
    with vega3d.zeroed(merged):
        assert not torch.equal(oft.act(merged, batch), expected)


def test_a_peft_model_of_a_task_sees_the_image_or_says_what_to_change(build: Build) -> None:
    """In some versions of PEFT its forward calls around the hooks of the model inside."""
    config = lora()
    config.task_type = "CAUSAL_LM"
    model, prior = watch(get_peft_model(build(), config))
    message = ""
    try:
        logits(model, batch_of(pictures()))
    except errors.HostError as error:
        message = str(error)
    assert len(prior.seen) == 1 or "leave `task_type` of the LoraConfig unset" in message


# Copies and checkpoints.


def test_the_trap_of_copies_is_theirs(build: Build) -> None:
    """A deep copy runs the original's vision towers, patched or not, and the model cannot be pickled."""
    for model in (build(), hosts.patch(build())):
        twin = copy.deepcopy(model)
        before = logits(twin, batch_of(pictures()))
        with torch.no_grad():
            twin.vision_backbone.featurizer.patch_embed.proj.weight.mul_(2)
        assert torch.equal(logits(twin, batch_of(pictures())), before)
        with torch.no_grad():
            model.vision_backbone.featurizer.patch_embed.proj.weight.mul_(2)
        assert not torch.equal(logits(twin, batch_of(pictures())), before)
        with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
            pickle.dumps(model)


def test_the_branch_itself_can_be_pickled(build: Build) -> None:
    branch = vega3d.get_handle(hosts.patch(build(), init="released")).branch
    again = pickle.loads(pickle.dumps(branch))
    assert again.seam == branch.seam
    assert all(torch.equal(a, b) for a, b in zip(branch.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_the_whole_policy(oft: OFT, tmp_path: Path) -> None:
    batch = oft.batch(pictures(images=2))
    model = hosts.patch(oft.model(2), init="released")
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    again.vision_backbone.set_num_images_in_input(2)
    assert torch.equal(logits(again, batch), logits(oft.model(2), batch))
    vega3d.load_pretrained(again, tmp_path)
    assert torch.equal(logits(again, batch), expected)


# Bad input.


@pytest.mark.parametrize("method", ["forward", "predict_action"])
def test_another_number_of_images_than_the_setting(oft: OFT, method: str) -> None:
    model = hosts.patch(oft.model(2))
    batch = oft.batch(pictures(images=3))
    with pytest.raises(errors.HostError, match=r"set to 2 image.*\[B, 12, H, W\]; found \[1, 18, 56, 56\]") as caught:
        logits(model, batch) if method == "forward" else oft.act(model, batch)
    assert "set_num_images_in_input(3)" in str(caught.value)
    # And the next observation is fine.
    logits(model, oft.batch(pictures(images=2)))


def test_several_images_for_openvla(build: Build) -> None:
    with pytest.raises(errors.HostError, match="That is 2 images; OpenVLA takes one"):
        logits(hosts.patch(build()), batch_of(pictures(images=2)))


def test_pixels_of_the_wrong_channels(build: Build) -> None:
    shown = pictures()
    with pytest.raises(errors.HostError, match=r"must be \[B, 6, H, W\]; found \[1, 3, 56, 56\]"):
        logits(hosts.patch(build()), {**batch_of(shown), "pixel_values": stacked(shown, HALF)})


@pytest.mark.parametrize(
    ("given", "fitting"),
    [
        ((HALF, HALF), "0.5 throughout for 'featurizer', 0.5 throughout for 'fused_featurizer'"),
        ((HALF, IMAGENET), "0.5 throughout for 'featurizer', ImageNet's for 'fused_featurizer'"),
        ((IMAGENET, IMAGENET), "ImageNet's for 'featurizer', ImageNet's for 'fused_featurizer'"),
    ],
    ids=["both as SigLIP", "swapped", "both as DINOv2"],
)
def test_statistics_that_cannot_be(build: Build, given: tuple[Any, Any], fitting: str) -> None:
    shown = pictures()
    with pytest.raises(errors.FramesError, match="from the vision tower") as caught:
        logits(hosts.patch(build()), {**batch_of(shown), "pixel_values": stacked(shown, *given)})
    assert fitting in str(caught.value)
    assert "processor=processor" in str(caught.value)


@pytest.mark.parametrize("off", [0.015, -0.015, 0.03, -0.03])
def test_the_two_towers_must_show_the_same_picture(build: Build, off: float) -> None:
    """Each in range by itself; 0.02 apart on average is the most that is let through."""
    shown = pictures() * 0.8 + 0.1
    groups = [IMAGENET.normalise(shown), HALF.normalise(shown + off)]
    batch = {**batch_of(shown), "pixel_values": torch.cat(groups, dim=2).flatten(1, 2)}
    model = hosts.patch(build())
    if abs(off) < 0.02:
        logits(model, batch)
        return
    with pytest.raises(errors.FramesError, match=r"pictures differ by 0.03 on average.*two different pictures"):
        logits(model, batch)


def test_statistics_that_are_wrong_within_the_range(build: Build) -> None:
    """A grey picture stays in range with any statistics; the towers give them away."""
    shown = pictures() * 0.1 + 0.45
    with pytest.raises(errors.FramesError, match=r"differ by 0\.\d+ on average.*0\.5 throughout for 'featurizer'"):
        logits(hosts.patch(build()), {**batch_of(shown), "pixel_values": stacked(shown, HALF, HALF)})


def test_wrong_statistics_of_a_single_tower(build: Build) -> None:
    """There is no other picture to compare with; the range tells."""
    shown = pictures()
    with pytest.raises(errors.FramesError, match=r"pixels of 'featurizer' lie in \[-0\.\d+, 1\.\d+\]") as caught:
        logits(hosts.patch(build(fused=False)), {**batch_of(shown), "pixel_values": stacked(shown, IMAGENET)})
    assert "These would fit: ImageNet's for 'featurizer'." in str(caught.value)


def test_pixels_that_were_never_normalised(build: Build) -> None:
    shown = pictures()
    with pytest.raises(errors.FramesError, match=r"none, pixels in \[0, 1\] for 'featurizer'"):
        logits(hosts.patch(build()), {**batch_of(shown), "pixel_values": torch.cat([shown[:, 0]] * 2, dim=1)})


def test_pixels_that_are_not_numbers(build: Build) -> None:
    batch = batch_of(pictures())
    batch["pixel_values"][0, 0, 0, 0] = float("nan")
    with pytest.raises(errors.FramesError, match="NaN or infinity"):
        logits(hosts.patch(build()), batch)


def test_half_precision_and_pictures_of_one_colour_are_plausible(oft: OFT) -> None:
    model, prior = watch(oft.model(2).bfloat16())
    for value in (0.0, 1.0):
        batch = oft.batch(torch.full((1, 2, 3, SIDE, SIDE), value))
        logits(model, hosts.in_dtype(batch, torch.bfloat16))
    assert len(prior.seen) == 4


def test_a_processor_of_another_host(build: Build) -> None:
    model = build()
    for wrong in (processor(HALF), SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)):
        with pytest.raises(errors.HostError, match="expects a processor with 2 `means` and `stds`"):
            hosts.patch(model, processor=wrong)
    assert not vega3d.is_patched(model)


def spoil(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        if name == "no tower":
            model.vision_backbone = None
        if name == "no featurizer":
            model.vision_backbone.fused_featurizer = None
        if name == "no projector":
            del model.projector
        if name == "no grid":
            del model.vision_backbone.featurizer.patch_embed.grid_size
        if name == "no statistics":
            for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
                tower.default_cfg = {}
        if name == "another width":
            model.projector.fc3 = nn.Linear(32, 48)

    return change


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no tower", "expects vision_backbone, found NoneType"),
        ("no featurizer", r"expects vision_backbone\.fused_featurizer, found NoneType"),
        ("no projector", "expects projector, found NoneType"),
        ("no grid", "patch_embed.grid_size, not found"),
        ("no statistics", "default_cfg has no mean and std. Pass the processor"),
        ("another width", "hidden size 32, found 48"),
    ],
)
def test_a_model_that_is_not_whole(build: Build, name: str, match: str) -> None:
    model = build()
    spoil(name)(model)
    with pytest.raises(errors.HostError, match=match) as caught:
        hosts.patch(model)
    assert not vega3d.is_patched(model)
    if "NoneType" in match:
        assert f"transformers {transformers.__version__}" in str(caught.value)
        assert "was tested with transformers 4.50.0 and timm 0.9.16" in str(caught.value)


def test_a_model_wrapped_for_several_processes(build: Build) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrapper in (nn.parallel.DistributedDataParallel, nn.DataParallel):
            with pytest.raises(errors.HostError, match=f"wrapped in {wrapper.__name__}.*before it is wrapped"):
                hosts.patch(wrapper(build()))
    finally:
        torch.distributed.destroy_process_group()


def test_the_vision_backbone_alone(oft: OFT) -> None:
    """As OFT's script holds it while it wraps it for FiLM: not the model."""
    film = oft.film(oft.model(2).vision_backbone, 32)
    with pytest.raises(errors.HostError, match=r"FiLMedPrismaticVisionBackbone.*openvla: OpenVLAForActionPrediction"):
        hosts.patch(film)


def test_a_cache_that_is_there_but_empty_hides_the_image(build: Build) -> None:
    """As later transformers begin `generate`: the host takes the first step for one of decoding."""
    model, batch = hosts.patch(build()), batch_of(pictures())
    given = {**batch, "input_ids": batch["input_ids"][:, -1:], "attention_mask": None}
    with pytest.warns(SeamMissedWarning, match=r"empty cache.*4\.40\.1.*use_cache=False"):
        logits(model, {**given, "past_key_values": DynamicCache()})


# Doctor.


class DoubleProcessor:
    """As PrismaticProcessor is called, and what it refuses."""

    def __init__(self, *statistics: Any) -> None:
        self.statistics = statistics or (IMAGENET, HALF)
        self.image_processor = processor(*self.statistics).image_processor

    def __call__(self, text: str, images: Any) -> dict[str, Tensor]:
        resized = np.array(images.convert("RGB").resize((SIDE, SIDE), resample=3))
        shown = torch.from_numpy(resized).permute(2, 0, 1)[None, None].float() / 255
        return {**batch_of(shown), "pixel_values": stacked(shown, *self.statistics)}


def results(model: nn.Module, given: Any) -> dict[str, tuple[str, str, str]]:
    return {check.name: (check.status, check.measured, check.advice) for check in examine(model, given)}


def test_doctor_explains_openvla(build: Build) -> None:
    found = results(build(), DoubleProcessor())
    assert {name: status for name, (status, _, _) in found.items() if status != "PASS"} == {"host": "WARN"}
    assert "copy.deepcopy" in found["host"][2]
    assert "image: 1 call, 1x4x4 tokens; video: takes no videos" in found["seam"][1]


@pytest.mark.parametrize("film", [False, True], ids=["plain", "film"])
def test_doctor_explains_oft(oft: OFT, film: bool) -> None:
    model = oft.model(2)
    if film:
        model.vision_backbone = oft.film(model.vision_backbone, 32)
    found = results(model.eval(), DoubleProcessor())
    assert {name: status for name, (status, _, _) in found.items() if status != "PASS"} == {"host": "WARN"}
    assert "1x4x4, 1x4x4 tokens" in found["seam"][1]
    # Its parallel decoding needs another attention than transformers has.
    assert "copy.deepcopy" in found["host"][2]
    assert "attends to earlier tokens alone" in found["host"][2]


class BothWays(nn.Module):
    """A language model whose every token sees all tokens."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        embedded = self.embeddings(input_ids)
        return SimpleNamespace(logits=embedded + embedded.mean(dim=1, keepdim=True))


def test_doctor_is_quiet_about_attention_in_both_directions(oft: OFT, build: Build) -> None:
    model = oft.model(2)
    model.language_model = BothWays(model.get_input_embeddings())
    for quiet in (model, build()):
        assert not any("attends" in notice for notice in find_host(quiet).notices(quiet))


def own_code(folder: Path, code: str) -> Path:
    """A checkpoint of the double that brings its code, as OpenVLA's on the hub do."""
    double.double_model().save_pretrained(folder)
    (folder / "modeling_double.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_double.OpenVLAConfig",
        "AutoModelForVision2Seq": "modeling_double.OpenVLAForActionPrediction",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers puts code of checkpoints."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules")
def test_doctor_runs_no_code_of_a_checkpoint_without_leave(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "model", "raise RuntimeError('the code was run')")
    for given, match in ([], "pass --trust-remote-code"), (["--trust-remote-code"], "the code was run"):
        result = CliRunner().invoke(app, ["doctor", str(folder), "--json", *given])
        assert result.exit_code == 1
        check, *_ = json.loads(result.stdout)["checks"]
        assert (check["name"], check["status"]) == ("load", "FAIL")
        assert match in check["measured"]
        assert ("'openvla' was tested with transformers 4.50.0 and timm 0.9.16" in check["measured"]) == bool(given)


@pytest.mark.usefixtures("modules")
def test_doctor_of_a_checkpoint_with_its_own_code(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "model", Path(double.__file__).read_text())
    found = {check.name: check for check in diagnose(folder, trust_remote_code=True)}
    assert found["load"].status == found["identity"].status == found["unpatch"].status == "PASS"
    assert "copy.deepcopy" in found["host"].advice
    # The double has no processor of its own.
    assert [name for name, check in found.items() if check.status == "FAIL"] == ["processor"]


if real_names():

    @pytest.mark.parametrize("name", real_names())
    def test_the_real_processor_makes_one_picture(name: str) -> None:
        """For both towers, to the rounding of float32."""
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8))
        first, second = real_processor(name)("lift the cup", picture)["pixel_values"].split(3, dim=1)
        torch.testing.assert_close(IMAGENET.unnormalise(first), HALF.unnormalise(second), rtol=0, atol=1.5e-7)

    @pytest.mark.parametrize("name", real_names())
    def test_doctor_with_the_real_processor(name: str) -> None:
        model, given = real_model(name), real_processor(name)
        found = results(model, given)
        assert {key: status for key, (status, _, _) in found.items() if status != "PASS"} == {"host": "WARN"}
        assert vega3d.get_handle(hosts.patch(model, processor=given)).seam.statistics_source == "processor"


def test_doctor_knows_a_copy(build: Build) -> None:
    found = results(copy.deepcopy(build()), DoubleProcessor())
    assert "This model is a deep copy: featurizer and fused_featurizer" in found["host"][2]


def test_doctor_looks_at_first_observations(build: Build) -> None:
    """Of a branch with history, two looks at the same picture would differ, by what was seen before."""
    model, prior = watch(build(), history=3, fusion=OPEN)
    probe = make_probe(DoubleProcessor(), model)
    assert check_branch(model, probe).status == "PASS"
    assert [len(frames) for frames in prior.seen] == [1] * 3


def test_doctor_finds_the_wrong_processor(build: Build) -> None:
    found = results(build(), DoubleProcessor(HALF, HALF))
    assert found["processor"][0] == "WARN"
    wrong = DoubleProcessor(HALF, HALF)
    wrong.image_processor = processor().image_processor
    found = results(build(), wrong)
    assert found["pixels"][0] == "FAIL"
    assert "0.5 throughout" in found["pixels"][1]
