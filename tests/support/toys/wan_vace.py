"""Wan 2.1 VACE in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import Toy
from .wan import SHAPE


def write(folder: Path) -> None:
    """A transformer of four blocks with hints behind the first and the third, a VAE and an empty prompt."""
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    torch.manual_seed(0)
    WanVACETransformer3DModel(**SHAPE, text_dim=16, freq_dim=32, vace_layers=[0, 2]).save_pretrained(
        folder / "transformer"
    )
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")


TOYS = (
    *(
        Toy("wan2.1-vace-1.3b", write, {"size": (32, 48), "tap": 2, "reference": r}, (2, 3), 4, id=f"wan2.1-vace-{r}")
        for r in ("none", "first")
    ),
    Toy(
        "wan2.1-vace-1.3b",
        write,
        {"size": (32, 48), "tap": 2, "reference": "released"},
        (2, 3),
        blocks=4,
        id="wan2.1-vace-released",
        contexts=("frame",),
    ),
    Toy("wan2.1-vace-14b", write, {"size": (32, 48), "tap": 2}, (2, 3), 4, id="wan2.1-vace-14b", contexts=("frame",)),
)
