"""Wan 2.2: its VAE in both layouts, and the A14B's two experts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_wan import close, frames
from support.toys import wan
from support.toys.wan import SHAPE
from support.toys.wan22 import write_5b, write_a14b

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError
from vega3d_plugin.priors.wan.checkpoint import TEXT_TO_VIDEO
from vega3d_plugin.priors.wan.original_vae import MEAN_22, STD_22, read_original_vae
from vega3d_plugin.priors.wan.prior import WanPrior

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


def original_vae_name(name: str) -> str | None:
    """The name that a tensor of diffusers' encoder has in Wan2.2_VAE.pth."""
    residual = {"norm1.gamma": "0.gamma", "conv1": "2", "norm2.gamma": "3.gamma", "conv2": "6"}
    for ours, theirs in residual.items():
        name = name.replace(f".{ours}", f".residual.{theirs}")
    name = re.sub(r"^quant_conv", "conv1", name)
    name = re.sub(r"^post_quant_conv", "conv2", name)
    name = name.replace("encoder.conv_in", "encoder.conv1").replace("encoder.conv_out", "encoder.head.2")
    name = name.replace("encoder.norm_out.gamma", "encoder.head.0.gamma")
    name = name.replace("mid_block.attentions.0", "middle.1")
    name = name.replace("mid_block.resnets.0", "middle.0").replace("mid_block.resnets.1", "middle.2")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"downsamples.\1.downsamples.\2", name)
    # The downsampling stands behind the two residual blocks of its level.
    name = re.sub(r"down_blocks\.(\d+)\.downsampler", r"downsamples.\1.downsamples.2", name)
    name = name.replace("conv_shortcut", "shortcut")
    return None if name.startswith("decoder.") else name


@pytest.fixture(scope="module")
def vae() -> object:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=48, in_channels=12, out_channels=12, patch_size=2, is_residual=True,
        scale_factor_spatial=16, latents_mean=MEAN_22, latents_std=STD_22,
    ).eval()  # fmt: skip


def test_the_vae_in_the_original_layout(vae, tmp_path: Path) -> None:
    state = {original_vae_name(name): value for name, value in vae.state_dict().items()}
    state.pop(None, None)
    torch.save(state, tmp_path / "Wan2.2_VAE.pth")
    config, tensors = read_original_vae(tmp_path / "Wan2.2_VAE.pth")
    expected = {name: value for name, value in vae.state_dict().items() if not name.startswith("decoder.")}
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    for key, value in config.items():
        found = getattr(vae.config, key)
        assert found == value, key


def test_a_vae_of_neither_version(vae, tmp_path: Path) -> None:
    state = {original_vae_name(name): value for name, value in vae.state_dict().items()}
    state.pop(None, None)
    state["encoder.conv1.weight"] = state["encoder.conv1.weight"][:, :5]
    torch.save(state, tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match=r"takes 5 channels and gives 48: neither Wan 2\.1 .* nor 2\.2"):
        read_original_vae(tmp_path / "Wan2.2_VAE.pth")


def test_the_whole_5b_in_the_original_layout(vae, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(1)
    ours, theirs = tmp_path / "diffusers", tmp_path / "original"
    theirs.mkdir()
    model = WanTransformer3DModel(**SHAPE, in_channels=48, out_channels=48, text_dim=16, freq_dim=32)
    model.save_pretrained(ours / "transformer")
    vae.save_pretrained(ours / "vae")
    save_file({"context": torch.randn(1, 16)}, ours / "empty_prompt.safetensors")
    shutil.copy(ours / "empty_prompt.safetensors", theirs)
    state = {original_vae_name(name): value for name, value in vae.state_dict().items()}
    state.pop(None, None)
    torch.save(state, theirs / "Wan2.2_VAE.pth")
    names = {
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm3",
        "attn1": "self_attn",
        "attn2": "cross_attn",
    }
    renamed = {}
    for name, value in load_file(ours / "transformer" / "diffusion_pytorch_model.safetensors").items():
        if name == "scale_shift_table":
            name = "head.modulation"
        name = name.replace("scale_shift_table", "modulation")
        for mine, other in names.items():
            name = name.replace(mine, other)
        for other, mine in ATTENTION.items():
            name = name.replace(f"attn.{mine}.", f"attn.{other}.")
        renamed[name] = value.clone()
    save_file(renamed, theirs / "diffusion_pytorch_model.safetensors")
    config = {
        "_class_name": "WanModel", "model_type": "ti2v", "dim": 48, "num_heads": 2, "num_layers": 4, "ffn_dim": 64,
        "in_dim": 48, "out_dim": 48, "text_dim": 16, "freq_dim": 32, "eps": 1e-6,
    }  # fmt: skip
    (theirs / "config.json").write_text(json.dumps(config))
    priors = [vega3d.load_prior("wan2.2-ti2v-5b", pretrained=f, size=(64, 96), tap=2) for f in (ours, theirs)]
    close(priors[1](frames(2)), priors[0](frames(2)))
    assert priors[0].fingerprint == priors[1].fingerprint
    assert isinstance(priors[0], WanPrior)
    assert priors[0].stride == 32


def test_the_5b_is_no_wan_21(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "t2v"}))
    with pytest.raises(CheckpointError, match=r"model_type is 't2v', expected ti2v"):
        vega3d.load_prior("wan2.2-ti2v-5b", pretrained=tmp_path)


def test_the_low_noise_expert_is_the_one_that_is_read(tmp_path: Path) -> None:
    write_a14b(tmp_path)
    # A folder with a transformer for high noise, which holds nothing that could be read.
    assert not any((tmp_path / "transformer").iterdir())
    assert vega3d.load_prior("wan2.2-a14b", pretrained=tmp_path, size=(32, 48), tap=1)(frames(1)).shape[0] == 1


def test_the_expert_for_high_noise_is_not_taken_for_wan_21(tmp_path: Path) -> None:
    """It is whole, of the same class and of the same shape: nothing else would tell."""
    write_a14b(tmp_path)
    shutil.copytree(tmp_path / "transformer_2", tmp_path / "transformer", dirs_exist_ok=True)

    def load() -> None:
        vega3d.load_prior("wan2.1-t2v-14b", pretrained=tmp_path, size=(32, 48), tap=1)

    with pytest.raises(CheckpointError, match=r"two transformers.*high noise.*use the prior 'wan2\.2-a14b'"):
        load()
    # As downloaded for Wan 2.1: without the other one, which the index still names.
    shutil.rmtree(tmp_path / "transformer_2")
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"transformer_2": ["diffusers", "WanTransformer3DModel"]}))
    with pytest.raises(CheckpointError, match="two transformers"):
        load()
    index.write_text(json.dumps({"transformer_2": [None, None]}))
    load()
    assert "model_index.json" in TEXT_TO_VIDEO.patterns


def test_the_5b_and_wan_21_are_told_apart_by_their_vae(tmp_path: Path) -> None:
    wan.write(tmp_path / "2.1")
    write_5b(tmp_path / "5b")
    # A size that both would take.
    with pytest.raises(CheckpointError, match=r"VAE is Wan 2\.2 5B's .* expected Wan 2\.1's .* text-to-video weights"):
        vega3d.load_prior("wan2.1-t2v-1.3b", pretrained=tmp_path / "5b", size=(64, 96), tap=2)
    with pytest.raises(CheckpointError, match=r"VAE is Wan 2\.1's .* expected Wan 2\.2 5B's .* TI2V weights"):
        vega3d.load_prior("wan2.2-ti2v-5b", pretrained=tmp_path / "2.1", size=(64, 96), tap=2)


def test_the_low_noise_expert_in_the_original_layout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"low-noise expert.*transformer_2/config\.json.*low_noise_model/"):
        vega3d.load_prior("wan2.2-a14b", pretrained=tmp_path)
    (tmp_path / "low_noise_model").mkdir()
    (tmp_path / "low_noise_model" / "config.json").write_text(json.dumps({"model_type": "i2v"}))
    with pytest.raises(CheckpointError, match=r"low_noise_model.*model_type is 'i2v', expected t2v"):
        vega3d.load_prior("wan2.2-a14b", pretrained=tmp_path)


def test_the_experts_change_over_above_the_timesteps_of_features(tmp_path: Path) -> None:
    write_a14b(tmp_path)
    with pytest.raises(PriorError, match=r"below timestep 875; got 900\. .* try 300"):
        vega3d.load_prior("wan2.2-a14b", pretrained=tmp_path, timestep=900)
