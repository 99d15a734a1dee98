"""Wan 2.1 text-to-video in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import Toy

SHAPE = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 4}


def write(folder: Path) -> None:
    """A transformer of four blocks, a VAE and an empty prompt."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    WanTransformer3DModel(**SHAPE, text_dim=16, freq_dim=32).save_pretrained(folder / "transformer")
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")


TOYS = tuple(
    Toy(name, write, {"size": (32, 48), "tap": 2}, (2, 3), blocks=4, id=name)
    for name in ("wan2.1-t2v-1.3b", "wan2.1-t2v-14b")
)
