"""The priors of Stable Diffusion 2.1 and of its VAE compute what the released code computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import goldens

import vega3d
from vega3d_plugin.priors.encoders.image_vae import VaePrior
from vega3d_plugin.priors.generators.stable_diffusion import StableDiffusionPrior

TOLERANCE = 1e-4
INFO = goldens.load("sd21_unet").info
SIZE, BIG = INFO["encoder"]["input_size"], INFO["encoder"]["input_size_big"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights in diffusers' layout, the prompt as the released code exports it."""
    path, golden = tmp_path_factory.mktemp("sd"), goldens.load("sd21_unet")
    for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        (path / part).mkdir()
        weights = {k: v.contiguous() for k, v in goldens.below(golden.weights, f"{part}.").items()}
        save_file(weights, path / part / "diffusion_pytorch_model.safetensors")
        (path / part / "config.json").write_text(json.dumps({"_class_name": kind, **golden.info["config"][part]}))
    (path / "scheduler").mkdir()
    schedule = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **golden.info["config"]["scheduler"]}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    torch.save({"prompt_embeds": golden.inputs["prompt_embeds"], "prompt": ""}, path / "empty_prompt_embeds.pt")
    return path


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, golden = tmp_path_factory.mktemp("vae"), goldens.load("sd21_vae")
    (path / "vae").mkdir()
    save_file(golden.weights, path / "vae" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "AutoencoderKL", **golden.info["config"]["vae"]}
    (path / "vae" / "config.json").write_text(json.dumps(config))
    return path


def prior(folder: Path, size: int = SIZE, **settings: object) -> StableDiffusionPrior:
    given = {"size": (size, size), "timestep": INFO["encoder"]["timestep"], **settings}
    loaded = vega3d.load_prior("sd2.1", pretrained=folder, **given)
    assert isinstance(loaded, StableDiffusionPrior)
    return loaded


def pooled(features: torch.Tensor, side: int) -> torch.Tensor:
    return vega3d.align(features, vega3d.TokenGrid(features.shape[0], side, side), space="adaptive_avg")


def test_timestep_and_noise(folder: Path) -> None:
    golden, p = goldens.load("sd21_unet"), prior(folder)
    assert set(golden.outputs["tau"].tolist()) == {p.noise_level().tau}
    assert abs(p.alpha - float(golden.outputs["alpha_cumprod"])) < 1e-6
    noisy = p.noised(golden.inputs["latents"], golden.inputs["noise"])
    assert goldens.error(noisy, golden.outputs["noisy"]) < 1e-6


def test_latents(folder: Path) -> None:
    golden = goldens.load("sd21_unet")
    assert goldens.error(prior(folder).encode(golden.inputs["frames"]), golden.inputs["latents"]) < TOLERANCE


def test_what_enters_the_mid_block(folder: Path) -> None:
    golden = goldens.load("sd21_unet")
    features = prior(folder).features(golden.inputs["latents"], golden.inputs["noise"])
    assert goldens.error(features, golden.outputs["mid_in"]) < TOLERANCE


def test_frames_to_features(folder: Path) -> None:
    golden = goldens.load("sd21_unet")
    features = prior(folder)(golden.inputs["frames"], noise=golden.inputs["noise"])
    side = INFO["encoder"]["output_spatial"]
    assert goldens.error(pooled(features, side), golden.outputs["feature"]) < TOLERANCE
    assert goldens.error(pooled(features, 14), golden.outputs["feature14"]) < TOLERANCE


@pytest.mark.parametrize("tiling", [False, True])
def test_tiles_of_larger_frames(folder: Path, tiling: bool) -> None:
    golden = goldens.load("sd21_unet")
    name = "tiled" if tiling else "untiled"
    p = prior(folder, BIG, tiling=tiling)
    assert goldens.error(p.encode(golden.inputs["frames_big"]), golden.outputs[f"latents_big_{name}"]) < TOLERANCE
    features = pooled(
        p(golden.inputs["frames_big"], noise=golden.inputs["noise_big"]), INFO["encoder"]["output_spatial"]
    )
    difference = goldens.error(features, golden.outputs["feature_big_tiled"])
    assert difference < TOLERANCE if tiling else difference > TOLERANCE


def test_the_preset_released_is_the_spatial_reasoning_branch(folder: Path) -> None:
    golden = goldens.load("sd21_unet")
    p = vega3d.load_prior("sd2.1", pretrained=folder, size=(SIZE, SIZE), preset="released")
    assert isinstance(p, StableDiffusionPrior)
    assert set(golden.outputs["sr_tau"].tolist()) == {p.noise_level().tau}
    assert p.vae.use_tiling
    noisy = p.noised(golden.inputs["latents"], golden.inputs["noise"])
    assert goldens.error(noisy, golden.outputs["sr_noisy"]) < 1e-6
    features = p(golden.inputs["frames"], noise=golden.inputs["noise"])
    assert goldens.error(features, golden.outputs["sr_feature_native"]) < TOLERANCE


def vae_prior(folder: Path, **settings: object) -> VaePrior:
    side = goldens.load("sd21_vae").info["encoder"]["input_size"]
    loaded = vega3d.load_prior("sd2.1-vae", pretrained=folder, size=(side, side), **settings)
    assert isinstance(loaded, VaePrior)
    return loaded


def test_vae_latents(vae_folder: Path) -> None:
    golden = goldens.load("sd21_vae")
    latents = vae_prior(vae_folder, pool=1)(golden.inputs["frames"])
    assert goldens.error(latents, golden.outputs["latents_scaled"]) < TOLERANCE


@pytest.mark.parametrize("name", sorted(k for k in goldens.load("sd21_vae").outputs if k.startswith("pool")))
def test_vae_features(vae_folder: Path, name: str) -> None:
    golden = goldens.load("sd21_vae")
    match = re.fullmatch(r"pool(\d+)_(?:out(\d+)|sr_native)", name)
    assert match
    features = vae_prior(vae_folder, pool=int(match[1]))(golden.inputs["frames"])
    features = pooled(features, int(match[2])) if match[2] else features
    assert goldens.error(features, golden.outputs[name]) < TOLERANCE
