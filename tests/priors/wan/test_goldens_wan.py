"""The Wan prior computes what the released code computes, from a folder in the original layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import goldens

import vega3d
from vega3d_plugin.priors.diffusion.flow_matching import add_noise, noise_level, schedule
from vega3d_plugin.priors.frozen.resizing import resize_crop
from vega3d_plugin.priors.wan.prior import WanPrior

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights, laid out as the original Wan release is."""
    path = tmp_path_factory.mktemp("wan")
    transformer, vae = goldens.load("wan_t2v"), goldens.load("wan_vae")
    save_file(transformer.weights, path / "diffusion_pytorch_model.safetensors")
    torch.save(vae.weights, path / "Wan2.1_VAE.pth")
    (path / "config.json").write_text(json.dumps({"_class_name": "WanModel", **transformer.info["config"]}))
    torch.save(transformer.inputs["context"], path / "wan_prompt_embedding.pt")
    return path


def prior(folder: Path, **settings: object) -> WanPrior:
    encoder = goldens.load("wan_t2v").info["encoder"]
    size = (encoder["frame_height"], encoder["frame_width"])
    loaded = vega3d.load_prior("wan2.1-t2v-1.3b", pretrained=folder, **{"size": size, **settings})
    assert isinstance(loaded, WanPrior)
    return loaded


def found(name: str, pattern: str, part: str = "outputs") -> list[tuple[str, ...]]:
    """The numbers in the names of a vector's tensors: which blocks, timesteps and lengths it pins."""
    matches = [re.fullmatch(pattern, key) for key in getattr(goldens.load(name), part)]
    numbers = sorted(match.groups() for match in matches if match)
    assert numbers, (name, pattern)
    return numbers


def tokens(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2)


def test_noise() -> None:
    golden = goldens.load("wan_noise")
    for pair in golden.info["pairs"]:
        level = noise_level(pair["timestep"], pair["shift"])
        assert level.tau == pair["tau"]
        assert abs(level.sigma - pair["sigma"]) < 1e-7
        noisy = add_noise(golden.inputs["latents"], golden.inputs["noise"], level.sigma)
        assert goldens.error(noisy, golden.outputs[f"noisy_{pair['i']}"]) < 1e-6


@pytest.mark.parametrize("shift", [shift for (shift,) in found("wan_noise", r"schedule_shift(\d+)_sigmas")])
def test_schedule(shift: str) -> None:
    golden = goldens.load("wan_noise")
    sigmas, timesteps = schedule(float(shift))
    assert torch.equal(timesteps, golden.outputs[f"schedule_shift{shift}_timesteps"])
    assert goldens.error(sigmas, golden.outputs[f"schedule_shift{shift}_sigmas"][:1000]) < 1e-6


@pytest.mark.parametrize("tap", [int(tap) for (tap,) in found("wan_t2v", r"block(\d+)")])
def test_blocks(folder: Path, tap: int) -> None:
    golden = goldens.load("wan_t2v")
    blocks = golden.info["config"]["num_layers"]
    for named in (tap, tap - blocks):
        p = prior(folder, tap=named)
        features = p.features(golden.inputs["latents"][:, :, 0], golden.inputs["noise"][:, :, 0])
        assert goldens.error(tokens(features), golden.outputs[f"block{tap}"]) < TOLERANCE


@pytest.mark.parametrize(("tap", "timestep", "shift"), found("wan_t2v", r"block(\d+)_t(\d+)_shift([\d.]+)"))
def test_other_timestep_and_shift(folder: Path, tap: str, timestep: str, shift: str) -> None:
    golden = goldens.load("wan_t2v")
    p = prior(folder, tap=int(tap), timestep=int(timestep), shift=float(shift))
    features = p.features(golden.inputs["latents"][:, :, 0], golden.inputs["noise"][:, :, 0])
    assert goldens.error(tokens(features), golden.outputs[f"block{tap}_t{timestep}_shift{shift}"]) < TOLERANCE


def test_prompt_of_several_tokens(folder: Path) -> None:
    golden = goldens.load("wan_t2v")
    ((tap,),) = found("wan_t2v", r"block(\d+)_context_multi")
    p = prior(folder, tap=int(tap))
    p.context = golden.inputs["context_multi"]
    features = p.features(golden.inputs["latents"][:, :, 0], golden.inputs["noise"][:, :, 0])
    assert goldens.error(tokens(features), golden.outputs[f"block{tap}_context_multi"]) < TOLERANCE


def test_pooled_features_of_a_larger_map(folder: Path) -> None:
    golden = goldens.load("wan_t2v")
    ((tap,),) = found("wan_t2v", r"block(\d+)_large_pooled14")
    features = prior(folder, tap=int(tap)).features(
        golden.inputs["latents_large"][:, :, 0], golden.inputs["noise_large"][:, :, 0]
    )
    pooled = vega3d.align(features, vega3d.TokenGrid(1, 14, 14), space="adaptive_avg")
    assert goldens.error(pooled, golden.outputs[f"block{tap}_large_pooled14"]) < TOLERANCE


def test_frames_attend_to_each_other_in_context_views(folder: Path) -> None:
    golden = goldens.load("wan_t2v_clip")
    ((tap,),) = found("wan_t2v_clip", r"block(\d+)")
    p = prior(folder, tap=int(tap), context="views")
    latents, noise = (golden.inputs[key][0].transpose(0, 1) for key in ("latents", "noise"))
    features = p.features(latents, noise)
    assert goldens.error(tokens(features).flatten(0, 1)[None], golden.outputs[f"block{tap}"]) < TOLERANCE


@pytest.mark.parametrize("frames", [int(n) for (n,) in found("wan_vae", r"video_t(\d+)", "inputs")])
def test_vae(folder: Path, frames: int) -> None:
    golden = goldens.load("wan_vae")
    video = golden.inputs[f"video_t{frames}"]
    p = prior(folder, tap=0, context="video", size=tuple(video.shape[-2:]))
    latents = p.encode((video.transpose(0, 1) + 1) / 2).transpose(0, 1)
    assert goldens.error(latents, golden.outputs[f"latent_t{frames}"]) < TOLERANCE


def test_frames_to_features(folder: Path) -> None:
    golden = goldens.load("wan_t2v_e2e")
    config = golden.info["config"]
    tap = config["feat_block_idx"]
    p = prior(
        folder,
        tap=tap,
        size=(config["frame_height"], config["frame_width"]),
        timestep=config["timestep"],
        shift=config["shift"],
    )
    assert goldens.error(p.encode(golden.inputs["frames"])[:, :, None], golden.outputs["latents"]) < TOLERANCE
    features = p(golden.inputs["frames"], noise=golden.inputs["noise"][:, :, 0])
    pooled = vega3d.align(features, vega3d.TokenGrid(features.shape[0], 14, 14), space="adaptive_avg")
    assert goldens.error(pooled, golden.outputs[f"block{tap}_pooled14"]) < TOLERANCE


def test_resize_and_crop() -> None:
    golden = goldens.load("preprocess")
    for case in golden.info["crop_cases"]:
        frames = resize_crop(golden.inputs[f"crop_{case['i']}"], tuple(case["out_hw"]))
        assert goldens.error(frames, golden.outputs[f"crop_{case['i']}"]) < TOLERANCE


def test_frame_sampling() -> None:
    from vega3d_plugin.contracts.clips import uniform_indices

    golden = goldens.load("preprocess")
    for case in golden.info["resample_cases"]:
        indices = uniform_indices(case["frames"], case["target"])
        assert indices == case["index"]
        sampled = golden.inputs[f"resample_{case['i']}"][indices]
        assert torch.equal(sampled, golden.outputs[f"resample_{case['i']}"])


# The released code guesses the value range of the frames from their minimum and maximum. We are told it. Where the
# guess is right, both agree; where it is wrong, ours must be the true picture and the guess must differ.
UNIT, NEG1_1 = ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("case", "statistics"), [("unit", UNIT), ("neg1_1", NEG1_1), ("clip", CLIP), ("neg1_1_slack", NEG1_1)]
)
def test_exact_unnormalisation_where_the_released_guess_is_right(case: str, statistics: tuple) -> None:
    golden = goldens.load("preprocess")
    frames = vega3d.PixelStatistics(*statistics).unnormalise(golden.inputs[f"range_{case}"])
    assert goldens.error(frames, golden.outputs[f"range_{case}_unit"]) < TOLERANCE
    assert goldens.error(frames * 2 - 1, golden.outputs[f"range_{case}_neg1_1"]) < TOLERANCE


@pytest.mark.parametrize("case", ["neg1_1_bright"])
def test_exact_unnormalisation_where_the_released_guess_is_wrong(case: str) -> None:
    golden = goldens.load("preprocess")
    pixels = golden.inputs[f"range_{case}"]
    frames = vega3d.PixelStatistics(*NEG1_1).unnormalise(pixels)
    torch.testing.assert_close(frames, (pixels + 1) / 2)
    assert goldens.error(frames, golden.outputs[f"range_{case}_unit"]) > 0.1


@pytest.mark.parametrize("case", ["clip_noisy", "gauss", "uint8", "constant"])
def test_frames_whose_range_the_released_code_clamps_or_rescales_are_refused(case: str) -> None:
    from vega3d_plugin.contracts.clips import check_frames

    golden = goldens.load("preprocess")
    pixels = golden.inputs[f"range_{case}"]
    statistics = vega3d.PixelStatistics(*(CLIP if case == "clip_noisy" else UNIT))
    with pytest.raises(vega3d.errors.FramesError, match=r"in \[0, 1\]"):
        check_frames(statistics.unnormalise(pixels), "test")
