"""Mochi in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .base import Toy

SHAPE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 4,
    "pooled_projection_dim": 16,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
}


def write(folder: Path) -> None:
    """A transformer of four blocks and a VAE; without text Mochi needs no prompt."""
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel

    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(**SHAPE)
    # Zero as they are made, so that positions would not matter.
    torch.nn.init.normal_(transformer.pos_frequencies)
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    ).save_pretrained(folder / "vae")


TOYS = (Toy("mochi-1", write, {"size": (32, 48), "tap": 2}, (2, 3), blocks=4, id="mochi-1"),)
