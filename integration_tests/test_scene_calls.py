"""``images="scene"`` and calls that are no single forward: broken off, encoded before the prompt, computed again."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import hosts
import pytest
import torch
from hosts import Batch, freeze_host, logits, loss_of
from rows.host import random_picture, random_video
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from watching import Watching

import vega3d
from vega3d_llava_video import tiny_transformers
from vega3d_plugin.contracts.errors import HostError, SeamMissedWarning
from vega3d_qwen_vl import tiny as tiny_qwen

MARKS = {"qwen2_5_vl": "<|vision_start|><|{}_pad|><|vision_end|>", "llava_onevision": "<{}>"}


@pytest.fixture(params=MARKS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def batch_of(family: str, kind: str, *sizes: tuple[int, int]) -> Batch:
    """One prompt for each size, with one image or one video of four frames."""
    tiny: Any = tiny_qwen if family in tiny_qwen.CLASSES else tiny_transformers
    processor = tiny.tiny_processor(family)
    processor.tokenizer.padding_side = "left"
    texts = [f"{MARKS[family].format(kind)} {'?' * (row + 1)}" for row in range(len(sizes))]
    seeds = enumerate(sizes)
    if kind == "image":
        media: dict[str, Any] = {"images": [[random_picture(*size, seed=row)] for row, size in seeds]}
    else:
        media = {"videos": [random_video(4, *size, seed=row) for row, size in seeds]}
        if hasattr(processor, "video_processor"):
            media["do_sample_frames"] = False
    batch = dict(processor(text=texts, padding=True, return_tensors="pt", **media))
    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in batch.items()}


def watch(family: str) -> tuple[nn.Module, Watching]:
    prior = Watching()
    return vega3d.patch(hosts.named(family).build(), prior, projector=hosts.PROJECTOR, images="scene"), prior


def break_off(model: nn.Module, batch: Batch) -> None:
    def give_up(module: nn.Module, args: Any) -> None:
        raise RuntimeError("out of memory")

    last = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")][-1]
    hook = last.register_forward_pre_hook(give_up)
    with pytest.raises(RuntimeError, match="out of memory"):
        logits(model, batch)
    hook.remove()


def test_a_good_batch_after_one_that_broke_off(family: str) -> None:
    """Videos tell nothing of images, and what the broken batch left behind was taken for images of theirs."""
    model, prior = watch(family)
    broken, good = batch_of(family, "image", (56, 84), (56, 84)), batch_of(family, "video", (56, 56), (56, 56))
    plain = logits(model, good)
    prior.seen.clear()
    break_off(model, broken)
    assert torch.equal(logits(model, good), plain)
    assert [len(frames) for frames in prior.seen[-2:]] == [4, 4]


def test_generate_with_a_video_for_each_prompt(family: str) -> None:
    """Nothing is joined, so there is nothing that could be joined across prompts."""
    batch = batch_of(family, "video", (56, 56), (56, 56))
    plain = hosts.named(family).build().generate(**batch, max_new_tokens=2)
    model, prior = watch(family)
    assert torch.equal(model.generate(**batch, max_new_tokens=2), plain)
    assert [len(frames) for frames in prior.seen] == [4, 4]


def test_generate_tells_the_images_of_its_prompts_apart(family: str) -> None:
    model, prior = watch(family)
    batch = batch_of(family, "image", (56, 84), (56, 84))
    model.generate(**batch, max_new_tokens=2)
    assert [len(frames) for frames in prior.seen][:2] == [1, 1]


def test_images_that_cannot_be_told_apart() -> None:
    model, prior = watch("qwen2_5_vl")
    batch = batch_of("qwen2_5_vl", "image", (56, 84), (56, 84))
    if "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters:
        # Before any prompt was seen.
        encoded = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
        rest = {key: value for key, value in batch.items() if key != "pixel_values"}
        with pytest.raises(HostError, match="one prompt at a time"):
            model(**rest, mm_encoder_outputs={"image": encoded})
        prior.seen.clear()
    # What was refused is not held against the next call, which tells.
    logits(model, batch)
    assert [len(frames) for frames in prior.seen] == [1, 1]


def still_videos(count: int) -> Batch:
    """One prompt for each video of two equal frames, which the tower is given just as it is given an image."""
    processor: Any = tiny_qwen.tiny_processor("qwen2_5_vl")
    processor.tokenizer.padding_side = "left"
    mark = MARKS["qwen2_5_vl"].format("video")
    videos = [random_video(1, 56, 56, seed=row).repeat(2, 1, 1, 1) for row in range(count)]
    more = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    texts = [f"{mark} {'?' * (row + 1)}" for row in range(count)]
    batch = dict(processor(text=texts, videos=videos, padding=True, return_tensors="pt", **more))
    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in batch.items()}


def test_still_videos_of_different_prompts_are_no_scene() -> None:
    model, prior = watch("qwen2_5_vl")
    batch = still_videos(2)
    logits(model, batch)
    assert [len(frames) for frames in prior.seen] == [2, 2]
    prior.seen.clear()
    model.generate(**batch, max_new_tokens=2)
    assert [len(frames) for frames in prior.seen] == [2, 2]


def test_a_still_video_is_a_video_for_a_prior_of_videos() -> None:
    model = hosts.patch(hosts.named("qwen2_5_vl").build(), context="video", init="released")
    assert torch.isfinite(logits(model, still_videos(1))).all()


@pytest.mark.parametrize("cache", [True, False])
def test_generate_warns_of_nothing(family: str, cache: bool) -> None:
    """Without a cache each step is given what was encoded, and fused, before the first."""
    model, prior = watch(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeamMissedWarning)
        model.generate(**batch_of(family, "image", (56, 84)), max_new_tokens=3, use_cache=cache)
    assert prior.seen


# Gradient checkpointing of the very module that the branch follows. Autograd may run it in a thread of its own.


class Checkpointed(nn.Module):
    """Stands for a module and computes it again in the backward pass."""

    def __init__(self, module: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = self.module
        if self.reentrant and args[0].is_floating_point():
            args = (args[0].requires_grad_(), *args[1:])
        return checkpoint(lambda *given: run(*given, **kwargs), *args, use_reentrant=self.reentrant)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def trained(family: str, images: str = "separate") -> nn.Module:
    context = "views" if images == "scene" else "frame"
    model = hosts.patch(hosts.named(family).build(), init="released", images=images, context=context)
    freeze_host(model)
    return model.train()


def checkpointed(model: nn.Module, name: str, reentrant: bool = False) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, Checkpointed(model.get_submodule(name), reentrant))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in vega3d.get_handle(model).parameters()]


def visual(model: nn.Module) -> str:
    return vega3d.get_handle(model).seam.path


def test_a_seam_that_is_computed_again_gives_the_same() -> None:
    model, batch = trained("qwen2_5_vl"), hosts.named("qwen2_5_vl").batch()
    expected = gradients(model, loss_of(model, batch))
    checkpointed(model, visual(model))
    calls: list[int] = []
    vega3d.get_handle(model).branch.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model, loss_of(model, batch))
    assert len(calls) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    # It belongs to no call: the next one is not taken to have seen pictures.
    assert vega3d.get_handle(model).branch.fired == 0


def test_a_block_that_has_ended_before_the_backward_pass() -> None:
    model, batch = trained("qwen2_5_vl"), hosts.named("qwen2_5_vl").batch()
    checkpointed(model, visual(model))
    with vega3d.zeroed(model):
        loss = loss_of(model, batch)
    told = rf"'{visual(model)}' again in the backward pass, .* inside vega3d.disabled"
    with pytest.raises(HostError, match=told):
        gradients(model, loss)


def test_a_block_that_lasts() -> None:
    model, batch = trained("qwen2_5_vl"), hosts.named("qwen2_5_vl").batch()
    with vega3d.zeroed(model):
        expected = gradients(model, loss_of(model, batch))
        checkpointed(model, visual(model))
        found = gradients(model, loss_of(model, batch))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_views_that_cannot_be_told_apart_the_second_time() -> None:
    model = trained("qwen2_5_vl", "scene")
    checkpointed(model, visual(model))
    loss = loss_of(model, batch_of("qwen2_5_vl", "image", (56, 84), (56, 84)))
    with pytest.raises(HostError, match="images='scene' cannot tell which images belong to which sample"):
        gradients(model, loss)


@pytest.mark.parametrize("reentrant", [False, True])
def test_pixels_that_are_not_there_the_second_time(reentrant: bool) -> None:
    model, batch = trained("llava_onevision"), batch_of("llava_onevision", "image", (56, 84))
    checkpointed(model, visual(model), reentrant)
    loss = loss_of(model, batch)
    with pytest.raises(HostError, match="the pixels, which were noted outside of the checkpointed part, are not there"):
        gradients(model, loss)


def test_images_of_samples_in_one_row_are_no_scene() -> None:
    model, _ = watch("qwen2_5_vl")
    one, two = (batch_of("qwen2_5_vl", "image", (64, 96)) for _ in range(2))
    packed = {
        key: torch.cat([one[key], two[key]], dim=int(key == "input_ids")) for key in one if key[:2] in ("in", "pi")
    }
    packed["image_grid_thw"] = torch.cat([one["image_grid_thw"], two["image_grid_thw"]])
    places = torch.arange(one["input_ids"].shape[1]).repeat(2).expand(3, 1, -1)
    logits(model, packed)
    with pytest.raises(HostError, match="several samples in one row"):
        logits(model, {**packed, "position_ids": places})
    with vega3d.disabled(model):
        logits(model, {**packed, "position_ids": places})
