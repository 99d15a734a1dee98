"""A host without weights shows the clips that the real one sees: of every family, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vega3d
from vega3d_llava_video import tiny_transformers as llava
from vega3d_plugin.contracts.clips import Clip
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.hosts.hollow import HollowHost, build_hollow
from vega3d_plugin.training.data import read_data
from vega3d_qwen_vl import tiny as qwen

ROWS = Path(__file__).parents[2] / "recipes" / "smoke_data" / "rows.json"
FAMILIES = [(qwen, family, "video") for family in qwen.available_families()]
FAMILIES += [(qwen, "qwen2_5_vl", "images"), (llava, "llava_onevision", "images")]
# The rest of LLaVA's processors take no videos.
PICTURES = ("llava", "llava_next", "vipllava")
FAMILIES += [(llava, family, "images" if family in PICTURES else "video") for family in llava.CLASSES]


class Silent(vega3d.Prior):
    feature_dim, fingerprint = 2, "silent"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :2, ::8, ::8]


def settings(images: str) -> vega3d.BranchSettings:
    return vega3d.BranchSettings.parse({"prior": {"name": "tiny-wan"}, "projector": {"name": "avg"}, "images": images})


def seen(model: nn.Module, processor: Any, images: str, batch: dict[str, Any]) -> list[Clip]:
    """The clips that the branch of a model with weights is given."""
    projector = {"name": "avg", "hidden_dim": 8}
    vega3d.patch(model, Silent(), processor=processor, images=images, projector=projector)
    branch = vega3d.get_handle(model).branch
    clips: list[Clip] = []
    forward = branch.forward

    def noting(tokens: Any, given: Any = (), **options: Any) -> Any:
        clips.extend(given)
        return forward(tokens, given, **options)

    branch.forward = noting
    with torch.no_grad():
        model(**batch)
    return clips


def check_same(real: list[Clip], hollow: list[Clip]) -> None:
    assert [(clip.grid, clip.kind, clip.past) for clip in hollow] == [(c.grid, c.kind, c.past) for c in real]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(real, hollow, strict=True))


@pytest.mark.parametrize(("tiny", "family", "video_as"), FAMILIES, ids=[f"{name}-{how}" for _, name, how in FAMILIES])
def test_the_clips_are_those_of_the_real_host(tiny: Any, family: str, video_as: str) -> None:
    dtype = "bfloat16" if video_as == "video" else "float32"
    images = "scene" if video_as == "images" else "separate"
    model, processor = tiny.tiny_model(family).to(getattr(torch, dtype)), tiny.tiny_processor(family)
    hollow = HollowHost(build_hollow(type(model), model.config, dtype), processor, settings(images))
    assert all(parameter.is_meta for parameter in hollow.model.parameters())
    data = read_data(processor, ROWS, frames=4, video_as=video_as)
    # One row with a video and one with pictures, each by itself, as extraction has them, and together in a batch.
    rows = [data[index] for index in (0, 3)]
    apart = []
    for row in rows:
        batch = data.collator([row])
        real = seen(tiny.tiny_model(family).to(getattr(torch, dtype)), processor, images, batch)
        apart += hollow.clips(batch)
        check_same(real, hollow.clips(batch))
        # Some processors have no use for a video.
        assert real or video_as == "video"
    keys = {clip.key for clip in hollow.clips(data.collator(rows))}
    assert keys == {clip.key for clip in apart}


@pytest.mark.parametrize("images", ["scene", "separate"])
def test_a_host_that_fuses_several_times_in_one_call_shows_all_its_clips(images: str) -> None:
    from doubles.llava import double_model
    from rows.llava_package import mixed_batch, text_batch

    batch = {**mixed_batch(), "attention_mask": torch.ones(1, 10, dtype=torch.bool)}
    hollow = HollowHost(build_hollow(type(double_model()), double_model().config, "float32"), None, settings(images))
    real = seen(double_model(), None, images, batch)
    assert [clip.kind for clip in real] == (["scene"] if images == "scene" else ["image", "image"]) + ["video"]
    # Twice: what the first call showed is forgotten.
    for _ in range(2):
        check_same(real, hollow.clips(batch, torch.device("cpu")))
    assert hollow.clips(text_batch()) == []


def test_text_alone_has_no_clips() -> None:
    model = qwen.tiny_model()
    hollow = HollowHost(build_hollow(type(model), model.config, "float32"), qwen.tiny_processor(), settings("separate"))
    assert hollow.clips({"input_ids": torch.zeros(1, 3, dtype=torch.long)}) == []


def test_a_host_that_must_run_to_be_understood_is_refused() -> None:
    from vega3d_transformers import tiny as others

    model, processor = others.tiny_model("paligemma"), others.tiny_processor("paligemma")
    with pytest.raises(HostError, match="cannot show its clips without its weights"):
        HollowHost(build_hollow(type(model), model.config, "float32"), processor, settings("separate"), "transformers")


def test_a_seam_that_does_not_fire_is_told() -> None:
    model = qwen.tiny_model()
    hollow = HollowHost(build_hollow(type(model), model.config, "float32"), qwen.tiny_processor(), settings("separate"))
    with pytest.raises(HostError, match="called without pixel_values or grid_thw"):
        hollow.clips({"input_ids": torch.zeros(1, 3, dtype=torch.long), "pixel_values": torch.zeros(4, 9)})
    # And one whose code takes another way to its tower.
    hollow.model.forward = lambda **_: None
    with pytest.raises(HostError, match=r"took 'pixel_values', but its seam '.*visual' was not called"):
        hollow.clips({"pixel_values": torch.zeros(4, 9)})
    hollow.model.forward = None
    with pytest.raises(HostError, match="cannot show the clips of 'pixel_values' without its weights"):
        hollow.clips({"pixel_values": torch.zeros(4, 9)})
