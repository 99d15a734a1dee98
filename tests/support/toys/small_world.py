"""``small-world``'s layout: a Wan transformer on pixels, without VAE and prompt."""

from __future__ import annotations

from pathlib import Path

import torch

from .base import Toy


def write(folder: Path) -> None:
    """A transformer of four blocks."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    WanTransformer3DModel(
        patch_size=(1, 3, 3), in_channels=3, out_channels=3, num_attention_heads=2, attention_head_dim=24, ffn_dim=64,
        num_layers=4, text_dim=16, freq_dim=32,
    ).save_pretrained(folder / "transformer")  # fmt: skip


TOYS = (Toy("small-world", write, {"size": (6, 9), "tap": 2, "context": "frame"}, (2, 3), blocks=4, id="small-world"),)
