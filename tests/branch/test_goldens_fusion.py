"""Fusers and projectors compute what the released code computes, from released weights loaded by name."""

from __future__ import annotations

import pytest
import torch
from support import goldens

import vega3d

TOLERANCE = 1e-4


def fuser_of(golden: goldens.Golden) -> vega3d.Fuser:
    config = dict(golden.info["config"])
    fuser = vega3d.build_fuser(config.pop("fusion_method"), config.pop("hidden_size"), **config)
    fuser.load_state_dict(golden.weights)
    return fuser.eval()


@pytest.mark.parametrize("name", goldens.names("fusion_*"))
def test_fusion(name: str) -> None:
    golden = goldens.load(name)
    fuser = fuser_of(golden)
    semantic = golden.inputs["features_2d"]
    generative = golden.inputs.get("features_gen", golden.inputs.get("features_3d"))
    for key, expected in golden.outputs.items():
        context = golden.inputs.get(key.replace("fused_ctx_", "instruction_ctx_"))
        assert goldens.error(fuser(semantic, generative, context=context), expected) < TOLERANCE, key


@pytest.mark.parametrize("name", goldens.names("fusion_*"))
def test_parameter_names_are_the_released_ones(name: str) -> None:
    golden = goldens.load(name)
    fuser = fuser_of(golden)
    released = {fuser.aliases.get(key, key) for key in golden.weights}
    assert set(fuser.state_dict()) == released
    assert {key for key, _ in fuser.named_parameters()} == released


@pytest.mark.parametrize("name", goldens.names("fusion_main_*"))
def test_flat_tokens_and_grids_give_the_same(name: str) -> None:
    golden = goldens.load(name)
    fuser = fuser_of(golden)
    semantic, generative = golden.inputs["features_2d"], golden.inputs["features_gen"]
    side = round(semantic.shape[1] ** 0.5)
    grid = (semantic.shape[0], side, side, -1)
    fused = fuser(semantic.reshape(grid), generative.reshape(grid))
    torch.testing.assert_close(fused.reshape(semantic.shape), fuser(semantic, generative))


@pytest.mark.parametrize("name", goldens.names("merger_*"))
def test_merge_projector(name: str) -> None:
    golden = goldens.load(name)
    config = golden.info["config"]
    projector = vega3d.build_projector(
        config["merger_type"],
        config["context_dim"],
        config["output_dim"],
        hidden_dim=config["hidden_dim"],
        merge=config["spatial_merge_size"],
    )
    projector.load_state_dict(golden.weights)
    for key, x in golden.inputs.items():
        assert goldens.error(projector(x), golden.outputs[key.replace("x_", "y_")]) < TOLERANCE, key


def test_mlp_projector() -> None:
    golden = goldens.load("projector_main_mlp2x_gelu")
    config = golden.info["config"]
    projector = vega3d.build_projector("mlp2x_gelu", config["in_dim"], config["hidden_size"])
    projector.load_state_dict(golden.weights)
    tokens = golden.inputs["pooled"].flatten(2).transpose(1, 2)
    assert goldens.error(projector(tokens), golden.outputs["projected"]) < TOLERANCE
