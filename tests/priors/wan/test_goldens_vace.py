"""The VACE prior computes what the released code computes, with and without a reference, and in the released manner."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import goldens

import vega3d
from vega3d_plugin.priors.wan.vace import WanVacePrior

TOLERANCE = 1e-4
GOLDEN = goldens.load("wan_vace")
TAPS = [int(m[1]) for key in GOLDEN.outputs if (m := re.fullmatch(r"noref_block(\d+)_all_tokens", key))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights, laid out as the original VACE release is."""
    path = tmp_path_factory.mktemp("vace")
    save_file(GOLDEN.weights, path / "diffusion_pytorch_model.safetensors")
    torch.save(goldens.load("wan_vae").weights, path / "Wan2.1_VAE.pth")
    (path / "config.json").write_text(json.dumps({"_class_name": "VaceWanModel", **GOLDEN.info["config"]}))
    torch.save(GOLDEN.inputs["context"], path / "wan_prompt_embedding.pt")
    return path


def prior(folder: Path, **settings: Any) -> WanVacePrior:
    encoder = GOLDEN.info["encoder"]
    fixed = {
        "size": (encoder["frame_height"], encoder["frame_width"]),
        "timestep": encoder["timestep"],
        "shift": encoder["shift"],
        "context_scale": encoder["context_scale"],
    }
    loaded = vega3d.load_prior("wan2.1-vace-1.3b", pretrained=folder, **{**fixed, **settings})
    assert isinstance(loaded, WanVacePrior)
    return loaded


def tokens(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2)


def noise() -> torch.Tensor:
    return GOLDEN.inputs["noise"][:, :, 0]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("tap", TAPS)
def test_without_a_reference(folder: Path, tap: int, fast: bool) -> None:
    features = prior(folder, tap=tap, reference="none", fast=fast)(GOLDEN.inputs["frames"], noise=noise())
    assert goldens.error(tokens(features), GOLDEN.outputs[f"noref_block{tap}_all_tokens"]) < TOLERANCE


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("tap", TAPS)
def test_the_released_padding(folder: Path, tap: int, fast: bool) -> None:
    features = prior(folder, tap=tap, reference="released", fast=fast)(GOLDEN.inputs["frames"], noise=noise())
    expected = GOLDEN.outputs[f"ref_block{tap}_all_tokens"]
    assert goldens.error(tokens(features), expected[:, expected.shape[1] // 2 :]) < TOLERANCE


def test_pooled_features(folder: Path) -> None:
    for name, reference in (("noref", "none"), ("ref", "released")):
        (key,) = (key for key in GOLDEN.outputs if re.fullmatch(rf"{name}_block\d+_pooled14", key))
        tap = int(re.findall(r"\d+", key)[0])
        features = prior(folder, tap=tap, reference=reference)(GOLDEN.inputs["frames"], noise=noise())
        pooled = vega3d.align(features, vega3d.TokenGrid(features.shape[0], 14, 14), space="adaptive_avg")
        assert goldens.error(pooled, GOLDEN.outputs[key]) < TOLERANCE


def test_what_the_control_branch_is_given(folder: Path) -> None:
    for reference, name in (("none", "noref"), ("released", "ref")):
        p, seen = prior(folder, tap=0, reference=reference), []
        p.transformer.vace_patch_embedding.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args))
        p(GOLDEN.inputs["frames"], noise=noise())
        assert goldens.error(torch.cat([args[0] for args in seen]), GOLDEN.outputs[f"{name}_vace_context"]) < TOLERANCE


def test_the_preset_is_the_released_way(folder: Path) -> None:
    p = vega3d.load_prior("wan2.1-vace-1.3b", pretrained=folder, preset="released", size=(64, 96))
    assert isinstance(p, WanVacePrior)
    assert p.vace.reference == "released"
    assert p.settings.tap == GOLDEN.info["config"]["num_layers"] - 1


def test_the_padding_leaves_nothing_behind(folder: Path) -> None:
    p = prior(folder, tap=max(TAPS), reference="released", fast=False)
    before = [block.attn1.processor for block in p.blocks()]
    p(GOLDEN.inputs["frames"])
    assert [block.attn1.processor for block in p.blocks()] == before
    assert not p.transformer.rope._forward_hooks
    assert not p.transformer.patch_embedding._forward_hooks
