"""What the seam of Qwen-VL hands to the branch: the frames the processor packed, exactly, clip by clip."""

from __future__ import annotations

from typing import Any

import hosts
import numpy as np
import pytest
import torch
from hosts import Host, logits, patch
from rows.qwen_vl import ROWS, qwen_batch
from torch import Tensor, nn
from watching import Watching

import vega3d
from vega3d_plugin.contracts.clips import clip_key
from vega3d_qwen_vl.tiny import tiny_processor


@pytest.fixture(params=ROWS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


def watch(host: Host, **settings: Any) -> tuple[nn.Module, Watching]:
    prior = Watching()
    return vega3d.patch(host.build(), prior, projector=hosts.PROJECTOR, **settings), prior


def test_frames_come_back_exactly(host: Host) -> None:
    processor = tiny_processor(host.name)
    model, prior = watch(host, processor=processor)
    rng = np.random.default_rng(1)
    side = 2 * processor.image_processor.patch_size
    # Multiples of the merged patch are not resized, so the frames must be these, pixel by pixel.
    image = rng.integers(0, 255, (2 * side, 3 * side, 3), dtype=np.uint8)
    video = rng.integers(0, 255, (4, 3 * side, 2 * side, 3), dtype=np.uint8)
    text = "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>?"
    options = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    frames = torch.from_numpy(video.transpose(0, 3, 1, 2).copy())
    batch = processor(text=[text], images=[image], videos=[frames], return_tensors="pt", **options)
    batch = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in batch.items()}
    logits(model, batch)
    assert vega3d.get_handle(model).seam.statistics_source == "processor"
    first, second = prior.seen
    assert first.shape[0] == 1
    expected = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None], frames]
    for seen, original in zip((first, second), expected, strict=True):
        torch.testing.assert_close(seen, original.float() / 255, rtol=0, atol=2e-6)


def test_the_familys_statistics_are_those_of_its_processor(host: Host) -> None:
    plain, _ = watch(host)
    told, _ = watch(host, processor=tiny_processor(host.name))
    a, b = vega3d.get_handle(plain).seam, vega3d.get_handle(told).seam
    assert (a.statistics_source, b.statistics_source) == ("family", "processor")
    assert a.statistics == b.statistics


def test_clips_of_a_mixed_batch(host: Host) -> None:
    model, prior = watch(host)
    logits(model, host.batch())
    # Two images of different sizes, then a video of five frames, padded to six by the processor.
    assert [clip.shape[0] for clip in prior.seen] == [1, 1, 6]
    assert prior.seen[0].shape[2:] != prior.seen[1].shape[2:]


def images(host: Host, counts: list[int]) -> dict[str, Tensor]:
    """A batch of prompts with so many images of one size each."""
    from PIL import Image

    processor = tiny_processor(host.name)
    processor.tokenizer.padding_side = "left"
    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)) for _ in range(sum(counts))]
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [f"{mark * count}{'?' * (i + 1)}" for i, count in enumerate(counts)]
    return dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


def mixed_sizes(host: Host, sizes: list[tuple[int, int]], grey: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """One prompt with an image of each size, noise or all of one grey."""
    from PIL import Image

    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    arrays = [np.full_like(array, level) for array, level in zip(arrays, grey, strict=True)] if grey else arrays
    text = "<|vision_start|><|image_pad|><|vision_end|>" * len(sizes) + "?"
    pictures = [Image.fromarray(array) for array in arrays]
    return dict(tiny_processor(host.name)(text=[text], images=pictures, return_tensors="pt"))


def test_scenes_follow_the_samples(host: Host) -> None:
    model, prior = watch(host, images="scene")
    logits(model, images(host, [3, 1, 2]))
    assert [clip.shape[0] for clip in prior.seen] == [3, 1, 2]
    prior.seen.clear()
    with vega3d.record_gates(model) as gates:
        logits(model, images(host, [2]))
    assert [clip.shape[0] for clip in prior.seen] == [2]
    assert [gate.shape[0] for gate in gates] == [2]


def test_views_of_several_sizes_are_one_scene(host: Host) -> None:
    """The prior sees them together; each has its own grid, and the features of its own place."""
    model, prior = watch(host, images="scene")
    both = mixed_sizes(host, [(64, 96), (96, 64), (64, 96)])
    with vega3d.record_gates(model) as gates:
        logits(model, both)
    assert [tuple(clip.shape) for clip in prior.seen] == [(3, 3, *prior.seen[0].shape[2:])]
    assert [tuple(gate.shape) for gate in gates] == [(1, 2, 3), (1, 3, 2), (1, 2, 3)]
    trained = patch(host.build(), context="views", images="scene", init="released")
    alone = patch(host.build(), context="views", images="separate", init="released")
    assert not torch.equal(logits(trained, both), logits(alone, both))


def test_each_view_of_a_scene_of_several_sizes_gets_its_own_colours(host: Host) -> None:
    """Black, white and grey views: the features that reach the projector are those of the view at that place."""
    model, _ = watch(host, images="scene")
    branch = vega3d.get_handle(model).branch
    found = []
    generative = type(branch).generative_tokens

    def tell(clips: Any, device: Any, dtype: Any) -> Tensor:
        found.extend(float(branch.aligned(clip, device).mean()) for clip in clips)
        return generative(branch, clips, device, dtype)

    branch.generative_tokens = tell
    logits(model, mixed_sizes(host, [(64, 96), (96, 64), (64, 96)], grey=(0, 255, 51)))
    assert found == pytest.approx([0.0, 1.0, 0.2], abs=1e-3)


def test_scenes_see_each_other_in_context_views(host: Host) -> None:
    batch = images(host, [2])
    together = patch(host.build(), context="views", images="scene", init="released")
    alone = patch(host.build(), context="views", images="separate", init="released")
    assert not torch.equal(logits(together, batch), logits(alone, batch))


def test_scenes_in_generate(host: Host) -> None:
    model, prior = watch(host, images="scene")
    model.generate(**images(host, [3]), max_new_tokens=2)
    assert [clip.shape[0] for clip in prior.seen] == [3]
    prior.seen.clear()
    model.generate(**images(host, [3]), max_new_tokens=2, num_beams=2)
    assert prior.seen[0].shape[0] == 3
    batch = images(host, [2, 1])
    prior.seen.clear()
    # transformers 5.19 and later encode before they show the prompts to the forward.
    model.generate(**batch, max_new_tokens=2)
    assert [clip.shape[0] for clip in prior.seen] == [2, 1]


@pytest.mark.parametrize("context", ["frame", "views", "video"])
def test_every_context_and_projector_fits_the_grid(host: Host, context: str) -> None:
    # A single image is no video.
    batch = qwen_batch(host.name, images=0) if context == "video" else host.batch()
    # Each context meets each projector in some host: all of them in each host would test the same pairs again.
    turn = ROWS.index(host) + ["frame", "views", "video"].index(context)
    projector = ("mlp", "avg", "mlp2x_gelu")[turn % 3]
    model = host.build()
    before = logits(model, batch)
    patch(model, context=context, projector={"name": projector, "hidden_dim": 32}, init="released")
    assert not torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("fusion", vega3d.list_fusers())
def test_every_fusion_runs_and_trains(fusion: str) -> None:
    host = ROWS[0]
    batch = host.batch()
    heads = {"num_heads": 4} if fusion == "cross_attention" else {}
    model = patch(host.build(), fusion={"name": fusion, "init": "released", **heads})
    model.train()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert all(p.grad is not None for p in vega3d.get_handle(model).parameters())


def test_a_store_changes_nothing(host: Host, tmp_path) -> None:
    batch = host.batch()
    expected = logits(patch(host.build(), init="released"), batch)
    for _ in range(2):
        model = patch(host.build(), init="released", store=tmp_path)
        for _ in range(2):
            assert torch.equal(logits(model, batch), expected)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


class Causal(vega3d.Prior):
    """One step for the first frame, one for the rest, as a causal video VAE would have; and says so."""

    feature_dim, fingerprint = 3, "causal"

    def __call__(self, frames: Tensor) -> Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(frames, (4, 6))
        return torch.stack([small[0], small[1:].mean(dim=0)])

    def spans(self, frames: int, steps: int) -> list[tuple[float, float]]:
        return [(0.0, 1 / frames), (1 / frames, 1.0)]


def test_the_priors_own_spans_are_used_in_time() -> None:
    model = vega3d.patch(ROWS[0].build(), Causal(), projector=hosts.PROJECTOR)
    branch = vega3d.get_handle(model).branch
    clip = vega3d.Clip(torch.rand(6, 3, 56, 84), vega3d.TokenGrid(3, 2, 3))
    patches = vega3d.TokenGrid(3, 4, 6)
    with torch.no_grad():
        tokens = branch.generative_tokens([clip], torch.device("cpu"), torch.float32)
        features = branch.prior(clip.frames)
        told, untold = (vega3d.align(features, patches, spans=s) for s in (branch.prior.spans(6, 2), None))
        expected, wrong = (branch.projector(x.permute(0, 2, 3, 1).contiguous()) for x in (told, untold))
    torch.testing.assert_close(tokens, expected)
    assert not torch.allclose(tokens, wrong)


def test_features_have_one_layout_wherever_they_come_from(tmp_path) -> None:
    clip = vega3d.Clip(torch.rand(2, 3, 56, 84), vega3d.TokenGrid(1, 2, 3))
    for store in (None, tmp_path, tmp_path):
        model = vega3d.patch(ROWS[0].build(), Watching(), projector=hosts.PROJECTOR, store=store)
        for _ in range(2):
            features = vega3d.get_handle(model).branch.features(clip)
            assert features.is_contiguous(memory_format=torch.channels_last)


def grey_levels() -> Any:
    """A picture in which every level of every channel stands somewhere."""
    from PIL import Image

    levels = np.arange(256, dtype=np.uint8)
    channels = [np.roll(levels, shift) for shift in (0, 85, 170)]
    picture = np.stack(channels, axis=-1).reshape(16, 16, 3).repeat(8, axis=0).repeat(8, axis=1)
    return Image.fromarray(picture)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_clip_has_one_key_whatever_the_hosts_dtype(host: Host, dtype: torch.dtype) -> None:
    """The tower casts pixels before the seam; above two deviations one step of bfloat16 is more than a grey level."""
    text = "<|vision_start|><|image_pad|><|vision_end|>?"
    batch = dict(tiny_processor(host.name)(text=[text], images=[grey_levels()], return_tensors="pt"))
    seen = []
    for wanted in (torch.float32, dtype):
        prior = Watching()
        model = vega3d.patch(host.build().to(wanted), prior, projector=hosts.PROJECTOR)
        model(**batch)
        seen.append(prior.seen[0])
    assert clip_key(seen[0]) == clip_key(seen[1])
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
