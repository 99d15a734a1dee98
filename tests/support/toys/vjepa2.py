"""V-JEPA 2 in transformers' layout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .base import Toy

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "mlp_ratio": 2,
    "crop_size": 64,
    "frames_per_clip": 8,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
SIZE = (32, 48)


def lively(model: nn.Module) -> Any:
    """Weights large enough for every block to matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
        elif "bias" in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.normal_(parameter, mean=1, std=0.1)
    return model


def write(folder: Path) -> None:
    """An encoder of three layers, and a predictor."""
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    lively(VJEPA2Model(VJEPA2Config(**SHAPE))).save_pretrained(folder)


def write_tuned(folder: Path) -> None:
    """The same encoder, tuned for classification."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

    torch.manual_seed(0)
    encoder = lively(VJEPA2Model(VJEPA2Config(**SHAPE)))
    model = VJEPA2ForVideoClassification(VJEPA2Config(**SHAPE, num_pooler_layers=1))
    model.vjepa2.load_state_dict(encoder.state_dict())
    model.save_pretrained(folder)


# Context `video` is the default, as released; tests want to choose.
SETTINGS = {"size": SIZE, "context": "frame"}

TOYS = (
    (
        Toy("vjepa2-vitl", write, SETTINGS, (2, 3), blocks=3, id="vjepa2-vitl"),
        Toy("vjepa2-vitg", write_tuned, SETTINGS, (2, 3), blocks=3, id="vjepa2-vitg-tuned"),
    )
    if find_spec("transformers.models.vjepa2")
    else ()
)
