"""Wan 2.2 in diffusers' layout: the 5B with its VAE of larger stride, and the A14B with two transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import Toy
from .wan import SHAPE


def write_5b(folder: Path) -> None:
    """Latents of 12 channels, a stride of 16 pixels, residual shortcuts in the VAE."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    WanTransformer3DModel(**SHAPE, in_channels=12, out_channels=12, text_dim=16, freq_dim=32).save_pretrained(
        folder / "transformer"
    )
    AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=12, in_channels=12, out_channels=12, patch_size=2, is_residual=True,
        scale_factor_spatial=16, latents_mean=[0.1] * 12, latents_std=[0.5] * 12,
    ).save_pretrained(folder / "vae")  # fmt: skip
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")


def write_a14b(folder: Path) -> None:
    """The expert for high noise is only a name: it must never be read."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    (folder / "transformer").mkdir()
    WanTransformer3DModel(**SHAPE, text_dim=16, freq_dim=32).save_pretrained(folder / "transformer_2")
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")


TOYS = (
    Toy("wan2.2-ti2v-5b", write_5b, {"size": (64, 96), "tap": 2}, (2, 3), blocks=4, id="wan2.2-ti2v-5b"),
    Toy("wan2.2-a14b", write_a14b, {"size": (32, 48), "tap": 2}, (2, 3), blocks=4, id="wan2.2-a14b"),
)
