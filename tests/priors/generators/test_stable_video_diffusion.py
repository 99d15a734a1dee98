"""Stable Video Diffusion: its taps, its chunks, its noise and its conditions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_of, edit, rewrite
from support.small_wan import apart, close, frames
from support.toys.stable_video_diffusion import write
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, SettingsError
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.generators.stable_video_diffusion import CLIP_MEAN, CLIP_STD, StableVideoDiffusionPrior
from vega3d_plugin.priors.load import resolve

SIZE = (16, 24)
STAGES = ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"]
TAPS = len(STAGES)
SCALE = 0.18215


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("svd")
    write(path)
    return path


def load(folder: Path, **settings: Any) -> StableVideoDiffusionPrior:
    prior = vega3d.load_prior("svd", pretrained=folder, **{"size": SIZE, **settings})
    assert isinstance(prior, StableVideoDiffusionPrior)
    return prior


def reference(
    folder: Path,
    clip: Tensor,
    *,
    chunk: int,
    sigma: float,
    scale: float = SCALE,
    first: bool = False,
    told: tuple[float, float, float] = (6, 127, 0.02),
) -> dict[str, Tensor]:
    """What every stage of the whole, unmodified UNet gives for a clip of the prior's size, chunk by chunk."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
    from transformers import CLIPVisionModelWithProjection

    unet = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet").eval()
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae").eval()
    clip_model = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    outputs: dict[str, list[Tensor]] = {"mid_input": []}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    def before(module: Any, args: Any, kwargs: Any) -> None:
        outputs["mid_input"].append(kwargs["hidden_states"])

    for name in STAGES:
        unet.get_submodule(name).register_forward_hook(keep(name))
    unet.mid_block.register_forward_pre_hook(before, with_kwargs=True)
    pixels = clip * 2 - 1
    with torch.no_grad():
        small = (_resize_with_antialiasing(pixels, (28, 28)) + 1) / 2
        images = clip_model((small - mean) / std).image_embeds
        augmentation = draw_noise(tuple(clip.shape[1:]), 0, range(-1, -1 - len(clip), -1))
        latents = vae.encode(pixels + told[2] * augmentation).latent_dist.mode()
        noise = draw_noise(tuple(latents.shape[1:]), 0, range(len(clip)))
        noisy = (scale * latents + sigma * noise) / math.sqrt(sigma**2 + 1)
        for start in range(0, len(clip), chunk):
            part = slice(start, start + chunk)
            condition = latents[start : start + 1].expand_as(latents[part]) if first else latents[part]
            unet(
                torch.cat([noisy[part], condition], dim=1)[None],
                torch.tensor(0.25 * math.log(sigma)),
                encoder_hidden_states=images[None, start : start + 1],
                added_time_ids=torch.tensor([told]),
            )
    return {name: torch.cat(maps) for name, maps in outputs.items()}


def level(timestep: int) -> float:
    """Sigma of a step of the published training schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = float((1 - betas).cumprod(0)[timestep])
    return ((1 - alpha) / alpha) ** 0.5


def test_every_tap_is_that_stage_of_the_whole_model(folder: Path) -> None:
    clip = frames(3, *SIZE)
    expected = reference(folder, clip, chunk=8, sigma=level(250))
    for tap, name in enumerate(STAGES):
        prior = load(folder, tap=tap)
        features = prior(clip)
        assert prior.feature_dim == features.shape[1]
        close(features, expected[name])
    prior = load(folder)
    assert prior.settings.tap == 2
    close(prior(clip), expected["mid_input"])


def test_the_defaults_are_the_released_ones() -> None:
    settings = resolve(vega3d.PriorSettings(name="svd"))
    assert (settings.size, settings.resize, settings.timestep) == ((896, 896), "stretch", 250)
    assert (settings.context, settings.window, settings.overlap) == ("views", 8, 0)


def test_chunks_follow_one_another_and_frames_see_their_chunk_alone(folder: Path) -> None:
    clip, prior = frames(5, *SIZE), load(folder, window=2)
    features = prior(clip)
    close(features, reference(folder, clip, chunk=2, sigma=level(250))["mid_input"])
    changed = clip.clone()
    changed[3] = 1 - changed[3]
    others = prior(changed)
    torch.testing.assert_close(others[[0, 1, 4]], features[[0, 1, 4]])
    assert apart(others[2], features[2]) > 1e-4
    assert load(folder, window=3).fingerprint != prior.fingerprint


def test_context_frame_is_a_chunk_of_one_frame(folder: Path) -> None:
    clip = frames(3, *SIZE)
    features = load(folder, context="frame")(clip)
    close(features, reference(folder, clip, chunk=1, sigma=level(250))["mid_input"])
    close(features, load(folder, window=1)(clip))
    for chunk_frames in (1, 2, 3):
        close(load(folder, context="frame", chunk_frames=chunk_frames)(clip), features)


def test_overlapping_windows_are_averaged(folder: Path) -> None:
    clip = frames(4, *SIZE)
    prior = load(folder, window=3, overlap=2)
    assert prior.places(4) == [range(3), range(1, 4)]
    assert load(folder, window=3).places(4) == [range(3), range(3, 4)]
    assert load(folder, window=3).places(2) == [range(2)]
    first = load(folder)(clip[:3])
    close(prior(clip)[0], first[0])


def test_the_condition_is_each_frame_or_the_first(folder: Path) -> None:
    clip = frames(3, *SIZE)
    each, first = load(folder), load(folder, condition="first")
    close(first(clip), reference(folder, clip, chunk=8, sigma=level(250), first=True)["mid_input"])
    assert apart(first(clip), each(clip)) > 1e-3
    assert first.fingerprint != each.fingerprint


def test_what_the_model_is_told(folder: Path) -> None:
    clip = frames(2, *SIZE)
    expected = reference(folder, clip, chunk=8, sigma=level(250), told=(11, 40, 0.3))["mid_input"]
    features = load(folder, fps=12, motion=40, augmentation=0.3)(clip)
    close(features, expected)
    assert apart(features, load(folder)(clip)) > 1e-4


@pytest.mark.parametrize("option", [{"condition": "last"}, {"fps": 0}, {"augmentation": -1.0}, {"schedule": "karras"}])
def test_wrong_options(folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(option))):
        load(folder, **option)


# Noise


@pytest.mark.parametrize("timestep", [0, 250, 999, 1000])
def test_a_timestep_is_a_step_of_the_training_schedule(folder: Path, timestep: int) -> None:
    found, sigma = load(folder, timestep=timestep).noise_level(), level(min(timestep, 999))
    assert found.sigma == pytest.approx(sigma, rel=1e-4)
    assert found.tau == pytest.approx(0.25 * math.log(sigma), abs=1e-4)


def test_the_schedule_is_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    edit(copied / "scheduler" / "scheduler_config.json", beta_end=0.02)
    assert load(copied).noise_level().sigma > load(folder).noise_level().sigma + 0.01
    assert load(copied).fingerprint != load(folder).fingerprint
    assert apart(load(copied)(frames(1)), load(folder)(frames(1))) > 1e-3


def test_the_released_schedule_takes_250_for_the_highest_noise_there_is(folder: Path) -> None:
    clip, prior = frames(3, *SIZE), load(folder, preset="released")
    assert prior.noise_level().sigma == pytest.approx(700)
    assert prior.noise_level().tau == pytest.approx(0.25 * math.log(700))
    close(prior(clip), reference(folder, clip, chunk=8, sigma=700, scale=1)["mid_input"])
    for timestep in (2, 999):
        assert load(folder, preset="released", timestep=timestep).noise_level() == prior.noise_level()
    low = load(folder, preset="released", timestep=0).noise_level()
    assert abs(low.tau) < 0.01
    assert abs(low.sigma - 1) < 0.02


def test_the_preset_released_leaves_the_latents_unscaled(folder: Path) -> None:
    clip = frames(2, *SIZE)
    prior = load(folder, scale_latents=False)
    close(prior(clip), reference(folder, clip, chunk=8, sigma=level(250), scale=1)["mid_input"])
    assert apart(prior(clip), load(folder)(clip)) > 1e-3


def test_noise_does_not_depend_on_chunks_of_the_vae(folder: Path) -> None:
    clip = frames(4)
    whole = load(folder, chunk_frames=4)
    for chunk_frames in (1, 3):
        close(load(folder, chunk_frames=chunk_frames).encode(clip), whole.encode(clip))
    same = load(folder, chunk_frames=4).encode(clip[:1].expand(2, -1, -1, -1))
    assert apart(same[0], same[1]) > 1e-4  # each frame has an augmentation of its own
    quiet = load(folder, chunk_frames=4, augmentation=0.0).encode(clip[:1].expand(2, -1, -1, -1))
    close(quiet[0], quiet[1])
    assert apart(load(folder, seed=1).encode(clip), whole.encode(clip)) > 1e-4


# CLIP


@pytest.mark.parametrize("shape", [(90, 70), (28, 33), (20, 24), (896, 896)])
def test_clips_picture_is_resized_as_in_the_pipeline(shape: tuple[int, int]) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    from vega3d_plugin.priors.generators.stable_video_diffusion import resize_antialiased

    images = frames(2, *shape) * 2 - 1
    torch.testing.assert_close(resize_antialiased(images, (28, 28)), _resize_with_antialiasing(images, (28, 28)))


def test_clip_sees_the_first_frame_of_the_chunk(folder: Path) -> None:
    seen: list[int] = []
    prior, clip = load(folder, window=2), frames(5)
    whole = prior.image_embedding

    def embedding(one: Tensor) -> Tensor:
        seen.append(next(i for i in range(5) if torch.equal(one[0], clip[i])))
        return whole(one)

    prior.image_embedding = embedding  # type: ignore[method-assign]
    prior(clip)
    assert seen == [0, 2, 4]
    prior = load(folder)
    expected = prior(clip)
    zero = prior.image_embedding
    prior.image_embedding = lambda one: zero(one) * 0 + 3  # type: ignore[method-assign]
    assert apart(prior(clip), expected) > 1e-4


def test_latents_alone_are_not_enough(folder: Path) -> None:
    prior = load(folder)
    with pytest.raises(PriorError, match="conditioned on frames, not on latents alone"):
        prior.features(prior.encode(frames(2)))
    prior(frames(2))
    with pytest.raises(PriorError, match="conditioned on frames"):
        prior.features(prior.encode(frames(2)))


def test_the_statistics_are_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    (copied / "feature_extractor").mkdir()
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (copied / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert load(copied).fingerprint != load(folder).fingerprint
    clip = frames(1)
    with load(copied).session(clip.device), load(folder).session(clip.device):
        assert apart(load(copied).image_embedding(clip), load(folder).image_embedding(clip)) > 1e-3


# Checkpoints


@pytest.mark.parametrize("tap", [0, 2, 3, 5])
def test_what_is_behind_the_tap_is_not_read(folder: Path, tmp_path: Path, tap: int) -> None:
    copied = copy_of(folder, tmp_path)
    later = tuple(f"{name}." for name in [*STAGES[tap + 1 :], "conv_norm_out", "conv_out"])
    weights = "diffusion_pytorch_model.safetensors"
    rewrite(copied / "unet" / weights, lambda ts: {k: v for k, v in ts.items() if not k.startswith(later)})
    rewrite(copied / "vae" / weights, lambda ts: {k: v for k, v in ts.items() if not k.startswith("decoder.")})
    prior = load(copied, tap=tap)
    assert not any(name.startswith(later) for name, _ in prior.unet.named_parameters())
    close(prior(frames(2)), load(folder, tap=tap)(frames(2)))
    assert prior.fingerprint == load(folder, tap=tap).fingerprint


def test_a_tap_out_of_range(folder: Path) -> None:
    assert load(folder, tap=-TAPS).settings.tap == 0
    for tap in (TAPS, -TAPS - 1):
        with pytest.raises(PriorError, match=rf"\[-{TAPS}, {TAPS - 1}\], got {tap}"):
            load(folder, tap=tap)


def test_half_precision_files_are_read_where_there_are_no_others(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        file = copied / part / f"{stem}.safetensors"
        half = file.with_name(f"{stem}.fp16.safetensors")
        save_file({key: tensor.half() for key, tensor in load_file(file).items()}, half)
        rewrite(half, lambda tensors: tensors)
    close(load(copied)(frames(2)), load(folder)(frames(2)))
    for file in copied.rglob("*.safetensors"):
        if "fp16" not in file.name:
            file.unlink()
    prior = load(copied)
    features = prior(frames(2))
    assert features.dtype == torch.float32
    assert 0 < apart(features, load(folder)(frames(2))) < 0.01


def test_old_image_encoders_hold_the_positions_numbers(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    numbers = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    rewrite(copied / "image_encoder" / "model.safetensors", lambda tensors: {**tensors, **numbers})
    close(load(copied)(frames(1)), load(folder)(frames(1)))


def test_in_float16_the_vae_stays_in_float32_where_it_says_so(folder: Path, tmp_path: Path) -> None:
    prior = load(folder, dtype="float16")
    features = prior(frames(2))
    assert features.dtype == torch.float16
    assert (prior.dtype, prior.vae.dtype) == (torch.float16, torch.float32)
    assert apart(features.float(), load(folder)(frames(2))) < 0.05
    copied = copy_of(folder, tmp_path)
    edit(copied / "vae" / "config.json", force_upcast=False)
    prior = load(copied, dtype="float16")
    prior(frames(2))
    assert prior.vae.dtype == torch.float16


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image encoder": (lambda f: shutil.rmtree(f / "image_encoder"), "has no image_encoder/"),
    "a text encoder": (
        lambda f: edit(f / "image_encoder" / "config.json", model_type="clip_text_model"),
        "model_type is 'clip_text_model', expected clip_vision_model",
    ),
    "another image encoder": (
        lambda f: edit(f / "image_encoder" / "config.json", projection_dim=30),
        "embeddings of 30 numbers, the UNet expects 20",
    ),
    "text to video": (lambda f: edit(f / "unet" / "config.json", in_channels=4), "takes 4 channels, .* gives it 8"),
    "another scheduler": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        "'DDIMScheduler', expected EulerDiscreteScheduler",
    ),
    "half a config": (lambda f: edit(f / "unet" / "config.json", block_out_channels=None), "lacks block_out_channels"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_checkpoints_that_cannot_be_used(folder: Path, tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    copied = copy_of(folder, tmp_path)
    change(copied)
    with pytest.raises(CheckpointError, match=message):
        load(copied)
