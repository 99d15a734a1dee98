"""The hosts that the promises are tested on. Adding a host is adding a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vega3d
from vega3d_qwen_vl.tiny import available_families, tiny_model, tiny_processor

PROJECTOR = {"name": "mlp", "hidden_dim": 64}
Batch = dict[str, Any]


@dataclass(frozen=True)
class Host:
    """One row.

    Attributes:
        name: for test ids.
        build: makes a fresh model; equal on every call.
        batch: makes inputs with images and video.
        video_batch: inputs with video only.
        text_batch: inputs without any.
        seam: path of the module that is patched.
        linear: a linear of the language model that LoRA usually targets.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    video_batch: Callable[[], Batch]
    text_batch: Callable[[], Batch]
    linear: str = "q_proj"


def _qwen_batch(family: str, images: int = 2, video: bool = True) -> Batch:
    from PIL import Image

    processor = tiny_processor(family)
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (96, 64), (64, 64)]
    pictures = [Image.fromarray(rng.integers(0, 255, (*sizes[i], 3), dtype=np.uint8)) for i in range(images)]
    content: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
    media: dict[str, Any] = {"images": pictures} if pictures else {}
    if video:
        content.append({"type": "video"})
        frames = rng.integers(0, 255, (5, 3, 64, 96), dtype=np.uint8)
        media["videos"] = [torch.from_numpy(frames)]
    content.append({"type": "text", "text": "Left or right?"})
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[text], return_tensors="pt", **media))


def _qwen(family: str) -> Host:
    return Host(
        family,
        build=lambda: tiny_model(family),
        batch=lambda: _qwen_batch(family),
        video_batch=lambda: _qwen_batch(family, images=0),
        text_batch=lambda: _qwen_batch(family, images=0, video=False),
    )


HOSTS = [_qwen(family) for family in available_families()]


def patch(model: nn.Module, **settings: Any) -> nn.Module:
    """Patch with the tiny prior and a small projector; new weights are equal on every call."""
    torch.manual_seed(0)
    return vega3d.patch(model, "tiny-wan", **{"projector": PROJECTOR, **settings})


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits without gradient."""
    with torch.no_grad():
        out: Tensor = model(**batch).logits
    return out


def train(model: nn.Module, batch: Batch, steps: int = 3, lr: float = 1e-2) -> list[float]:
    """A few optimiser steps on all parameters that train; the losses."""
    labels = batch["input_ids"].clone()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def freeze_host(model: nn.Module) -> None:
    """Leave the branch alone to train."""
    model.requires_grad_(False)
    vega3d.get_handle(model).unfreeze()
