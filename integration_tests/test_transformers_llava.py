"""LLaVA in transformers: tiles, pooled frames, newline tokens, samples, and what happens when the seam changes."""

from __future__ import annotations

import inspect
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hosts
import pytest
import torch
from hosts import logits
from rows.host import random_picture, random_video
from rows.transformers_llava import VIDEOS, llava_batch, row
from torch import Tensor, nn

import vega3d
from vega3d_llava_video.tiny_transformers import (
    CLASSES,
    side_of,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from vega3d_llava_video.transformers_adapter import TransformersLlavaAdapter
from vega3d_plugin.contracts.clips import Clip
from vega3d_plugin.contracts.errors import AlignmentError, HostError, SeamMissedWarning
from vega3d_plugin.evaluation.doctor.examine import diagnose
from vega3d_plugin.hosts.hooks import FuseMethod, NoteMethod
from vega3d_plugin.hosts.probing import watching


def clips_of(model: nn.Module, batch: dict[str, Any]) -> list[Clip]:
    with watching(model) as records:
        logits(model, batch)
    return [clip for record in records for clip in record.clips]


def base_of(model: nn.Module) -> Any:
    return getattr(model, "model", model)


def many_images(family: str, samples: list[list[tuple[int, int]]]) -> dict[str, Any]:
    """A batch of prompts with images of these sizes."""
    processor = tiny_processor(family)
    texts, pictures = [], []
    for sizes in samples:
        content = [*[{"type": "image"}] * len(sizes), {"type": "text", "text": "Which?"}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}]))
        pictures.append([random_picture(*size, seed=sum(size)) for size in sizes])
    return dict(processor(images=pictures, text=texts, return_tensors="pt", padding=True))


@pytest.mark.parametrize("family", CLASSES)
def test_every_family_is_fused_once_and_a_fresh_patch_is_invisible(family: str) -> None:
    model, batch = tiny_model(family), llava_batch(family)
    before = logits(model, batch)
    hosts.patch(model)
    assert torch.equal(logits(model, batch), before)
    assert [(c.grid.t, c.grid.h, c.grid.w) for c in clips_of(model, batch)] == list(row(family).grids)


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "video_llava"])
def test_the_branch_sees_the_frames_of_the_video(family: str) -> None:
    model, batch = hosts.patch(tiny_model(family)), llava_batch(family)
    statistics = vega3d.get_handle(model).seam.statistics
    (video,) = [clip for clip in clips_of(model, batch) if clip.kind == "video"]
    assert torch.equal(video.frames, statistics.unnormalise(batch["pixel_values_videos"][0]))
    assert float(video.frames.min()) > -0.01
    assert float(video.frames.max()) < 1.01


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_tiles_come_in_order_and_padding_does_not(family: str) -> None:
    side = side_of(family)
    # Two tiles beside each other, and four: the first is padded to as many.
    batch = many_images(family, [[(side, 2 * side), (2 * side, 2 * side)]] if family == "llava_next" else [
        [(side, 2 * side)], [(2 * side, 2 * side)]
    ])  # fmt: skip
    model = hosts.patch(tiny_model(family))
    clips = clips_of(model, batch)
    assert batch["pixel_values"].shape[1] == 5
    assert len(clips) == 3 + 5
    statistics = vega3d.get_handle(model).seam.statistics
    expected = [*batch["pixel_values"][0][:3], *batch["pixel_values"][1]]
    for clip, pixels in zip(clips, expected, strict=True):
        assert clip.kind == "image"
        assert torch.equal(clip.frames, statistics.unnormalise(pixels)[None])


def test_newline_tokens_are_left_alone() -> None:
    family = "llava_onevision"
    model, batch = hosts.patch(tiny_model(family), init="released"), llava_batch(family)
    seen: list[Tensor] = []
    language: Any = base_of(model).language_model

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"].detach())

    handle = language.register_forward_pre_hook(record, with_kwargs=True)
    logits(model, batch)
    with vega3d.disabled(model):
        logits(model, batch)
    handle.remove()
    fused, plain = (embeds[0] for embeds in seen)
    newline = base_of(model).image_newline.detach()
    is_newline = (plain == newline).all(dim=-1)
    ids = tiny_tokenizer().convert_tokens_to_ids(["<image>", "<video>"])
    visual = torch.isin(batch["input_ids"][0], torch.tensor(ids))
    # One after each row of tiles of the two images, and one after the video.
    assert int(is_newline.sum()) > 2
    assert torch.equal(fused[is_newline], plain[is_newline])
    assert torch.equal(fused[~visual], plain[~visual])
    assert bool((fused != plain).any(dim=-1)[visual & ~is_newline].all())


def test_images_of_one_sample_are_the_views_of_one_scene() -> None:
    sizes = [[(56, 56), (56, 56)], [(56, 56)]]
    batch = many_images("llava", sizes)
    clips = clips_of(hosts.patch(tiny_model("llava"), images="scene", context="views"), batch)
    assert [(c.kind, c.grid.t) for c in clips] == [("scene", 2), ("image", 1)]
    separate = clips_of(hosts.patch(tiny_model("llava")), batch)
    assert torch.equal(clips[0].frames, torch.cat([clip.frames for clip in separate[:2]]))


def test_several_images_of_llava_onevision_are_not_cut_and_join_to_a_scene() -> None:
    batch = many_images("llava_onevision", [[(70, 140), (70, 140)], [(70, 140)]])
    clips = clips_of(hosts.patch(tiny_model(), images="scene", context="views"), batch)
    if "batch_num_images" in batch:
        assert [(c.kind, c.grid.t) for c in clips] == [("scene", 2), *[("image", 1)] * 3]
    else:
        # Before transformers 4.53 every image is cut.
        assert [(c.kind, c.grid.t) for c in clips] == [("image", 1)] * 9


def test_tiles_are_no_views() -> None:
    batch = many_images("llava_next", [[(56, 112), (56, 112)]])
    clips = clips_of(hosts.patch(tiny_model("llava_next"), images="scene", context="views"), batch)
    assert [(c.kind, c.grid.t) for c in clips] == [("image", 1)] * 6


def test_a_class_token_is_left_alone() -> None:
    """Video-LLaVA keeps one for each frame of a video."""
    family = "video_llava"
    model = hosts.patch(tiny_model(family), init="released")
    video = llava_batch(family)["pixel_values_videos"]
    outputs: list[Tensor] = []
    projector = model.get_submodule(vega3d.get_handle(model).seam.path)
    handle = projector.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    layer = model.config.vision_feature_layer
    base_of(model).get_video_features(video, vision_feature_layer=layer)
    with vega3d.disabled(model):
        base_of(model).get_video_features(video, vision_feature_layer=layer)
    handle.remove()
    fused, plain = outputs
    assert fused.shape[:2] == (4, 17)
    assert torch.equal(fused[:, 0], plain[:, 0])
    assert bool((fused != plain).any(dim=-1)[:, 1:].all())


def test_a_video_that_passes_by_is_named_though_the_images_were_fused() -> None:
    model, batch = hosts.patch(tiny_model()), llava_batch("llava_onevision")
    base = base_of(model)
    assert isinstance(base.__dict__["apply_pooling"], FuseMethod)
    del base.__dict__["apply_pooling"]
    with pytest.warns(SeamMissedWarning, match=r"did not see 1 video.*'apply_pooling' was not called"):
        logits(model, batch)


def test_features_that_are_asked_for_by_themselves_are_fused() -> None:
    model, batch = hosts.patch(tiny_model("llava"), init="released"), llava_batch("llava")
    config = model.config
    asked = {
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    with watching(model) as records:
        base_of(model).get_image_features(batch["pixel_values"], **asked)
    assert [len(record.clips) for record in records] == [2]


def test_images_of_several_sizes_keep_their_grids() -> None:
    """LLaVA with Pixtral's vision tower pads pictures to one size and encodes each in its own."""
    import transformers

    config = tiny_model("llava").config
    vision = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 112, "patch_size": 14,
    }  # fmt: skip
    text = config.text_config.to_dict()
    pixtral = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=config.image_token_index,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(pixtral).eval()
    sizes = torch.tensor([[56, 84], [84, 28]])
    ids = torch.cat([torch.full((4 * 6 + 6 * 2,), config.image_token_index), torch.arange(5)])[None]
    batch = {"input_ids": ids, "pixel_values": torch.rand(2, 3, 84, 84), "image_sizes": sizes}
    before = logits(model, batch)
    hosts.patch(model)
    assert torch.equal(logits(model, batch), before)
    clips = clips_of(model, batch)
    assert [(c.grid.h, c.grid.w) for c in clips] == [(4, 6), (6, 2)]
    assert [tuple(c.frames.shape[-2:]) for c in clips] == [(56, 84), (84, 28)]


def test_a_model_that_has_not_run_can_be_pickled() -> None:
    """What transformers 5 hangs on a vision tower that has run cannot."""
    model, batch = hosts.patch(tiny_model(), init="released"), llava_batch("llava_onevision")
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(twin, batch), logits(model, batch))


@pytest.mark.parametrize("family", CLASSES)
def test_doctor_passes_on_a_folder(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    tiny_processor(family).save_pretrained(tmp_path)
    checks = list(diagnose(tmp_path))
    assert {check.name: check.status for check in checks if check.status != "PASS"} == {}
    (seam,) = [check for check in checks if check.name == "seam"]
    assert ("video: 1 call" in seam.measured) == (family in VIDEOS)


@pytest.mark.parametrize("family", CLASSES)
def test_generate_finds_the_methods_signature(family: str) -> None:
    """transformers looks at it to find out which arguments an encoder takes."""

    def signatures(model: nn.Module) -> list[inspect.Signature]:
        owners = (model, base_of(model))
        names = ("get_image_features", "get_video_features", "apply_pooling")
        return [inspect.signature(getattr(o, name)) for o in owners for name in names if hasattr(o, name)]

    model = tiny_model(family)
    before = signatures(model)
    hosts.patch(model)
    assert isinstance(base_of(model).get_image_features, NoteMethod)
    assert signatures(model) == before


def test_statistics_come_from_the_processor_or_the_vision_tower() -> None:
    adapter = TransformersLlavaAdapter()
    assert adapter.seams(tiny_model())[0].statistics.mean == (0.5, 0.5, 0.5)
    assert adapter.seams(tiny_model("llava"))[0].statistics.mean[0] == pytest.approx(0.481, abs=1e-3)
    own = adapter.seams(tiny_model("llava"), tiny_processor("llava_onevision"))[0]
    assert (own.statistics.mean, own.statistics_source) == ((0.5, 0.5, 0.5), "processor")


def test_an_unknown_vision_tower_needs_a_processor() -> None:
    model = tiny_model("llava")
    base_of(model).config.vision_config.model_type = "unheard_of"
    with pytest.raises(HostError, match=r"'unheard_of' was trained. Pass the model's processor"):
        vega3d.patch(model, "tiny-wan")
    vega3d.patch(model, "tiny-wan", processor=tiny_processor("llava"))


def test_videos_with_other_statistics_than_images_are_refused() -> None:
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        video_processor=SimpleNamespace(image_mean=[0.4] * 3, image_std=[0.5] * 3),
    )
    with pytest.raises(HostError, match=r"normalises images with .* but videos with"):
        vega3d.patch(tiny_model(), "tiny-wan", processor=processor)


def test_a_projector_that_is_missing_or_of_another_size_is_named() -> None:
    model = tiny_model("llava")
    del base_of(model).multi_modal_projector
    with pytest.raises(HostError, match=r"expects a module 'multi_modal_projector'.*whose children are"):
        vega3d.patch(model, "tiny-wan")
    model = tiny_model("llava")
    base_of(model).multi_modal_projector.linear_2 = nn.Linear(64, 48)
    with pytest.raises(HostError, match=r"LLM's hidden size 64, its last layer gives 48"):
        vega3d.patch(model, "tiny-wan")


def test_tokens_without_a_grid_are_refused() -> None:
    model, batch = hosts.patch(tiny_model("llava")), llava_batch("llava")
    projector = model.get_submodule(vega3d.get_handle(model).seam.path)
    # A resampler in its place: 6 tokens a picture. First, so that the branch sees its output.
    projector.register_forward_hook(lambda module, args, output: output[:, :6], prepend=True)
    with pytest.raises(AlignmentError, match=r"square grid of tokens per picture, found 6"):
        logits(model, batch)


def test_two_videos_in_one_tensor_are_two_clips() -> None:
    family = "llava_next_video"
    processor = tiny_processor(family)
    content = [{"type": "video"}, {"type": "text", "text": "Which?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    videos = [random_video(4, 64, 96, seed=seed) for seed in range(2)]
    batch = dict(processor(videos=videos, text=[text] * 2, return_tensors="pt"))
    model = hosts.patch(tiny_model(family))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeamMissedWarning)
        clips = clips_of(model, batch)
    assert [(c.kind, c.grid.t, c.grid.h, c.grid.w) for c in clips] == [("video", 4, 2, 2)] * 2
    assert not torch.equal(clips[0].frames, clips[1].frames)
