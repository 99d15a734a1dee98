"""Rows of the adapter ``qwen_vl``: every family that the installed transformers has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vega3d_qwen_vl.tiny import available_families, tiny_model, tiny_processor

from .host import Batch, Host


def qwen_batch(family: str, images: int = 2, video: bool = True) -> Batch:
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


def _grids(family: str) -> tuple[tuple[int, int, int], ...]:
    batch = qwen_batch(family)
    packed = [*batch["image_grid_thw"].tolist(), *batch["video_grid_thw"].tolist()]
    return tuple((t, h // 2, w // 2) for t, h, w in packed)


def _row(family: str) -> Host:
    return Host(
        family,
        "qwen_vl",
        build=lambda: tiny_model(family),
        batch=lambda: qwen_batch(family),
        text_batch=lambda: qwen_batch(family, images=0, video=False),
        grids=_grids(family),
    )


ROWS = [_row(family) for family in available_families()]
