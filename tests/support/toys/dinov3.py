"""DINOv3 in transformers' layout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .base import Toy
from .vjepa2 import lively

VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_register_tokens": 4,
}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}


def write_vit(folder: Path, gated: bool = False) -> None:
    """A ViT of three layers and four registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    lively(DINOv3ViTModel(DINOv3ViTConfig(**VIT, use_gated_mlp=gated))).save_pretrained(folder)


def write_gated_vit(folder: Path) -> None:
    """The same with gated MLPs, as ViT-S+, ViT-H+ and ViT-7B have them."""
    write_vit(folder, gated=True)


def write_convnext(folder: Path) -> None:
    """A ConvNeXt of four stages."""
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(0)
    lively(DINOv3ConvNextModel(DINOv3ConvNextConfig(**CONVNEXT))).save_pretrained(folder)


TOYS = (
    (
        Toy("dinov3-vitl", write_vit, {"size": (32, 48)}, (2, 3), blocks=3, id="dinov3-vitl"),
        Toy("dinov3-vith-plus", write_gated_vit, {"size": (32, 48)}, (2, 3), blocks=3, id="dinov3-vith-plus"),
        # Its taps have maps of different sizes.
        Toy("dinov3-convnext-large", write_convnext, {"size": (64, 96)}, (2, 3), id="dinov3-convnext-large"),
    )
    if find_spec("transformers.models.dinov3_vit")
    else ()
)
