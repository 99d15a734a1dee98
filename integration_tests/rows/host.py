"""What a row says about a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


def _generate(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    out: Tensor = model.generate(**batch, **options)  # type: ignore[operator]
    return out


def _load(model_class: Any, folder: Path) -> nn.Module:
    model: nn.Module = model_class.from_pretrained(folder).eval()
    return model


@dataclass(frozen=True)
class Host:
    """One row.

    Attributes:
        name: for test ids.
        adapter: name of the adapter that ``vega3d.patch`` must find.
        build: makes a fresh model in eval mode; equal on every call.
        batch: makes inputs with every kind of media that the host takes, for one prompt.
        text_batch: inputs without any.
        grids: token grids (t, h, w) of the clips of ``batch``, in the order in which the seam sees them.
        visual: argument of the model's forward that carries the images of ``batch``.
        generate: answers a batch; ``max_new_tokens`` and ``num_beams`` are passed on.
        load: makes a model of that class from a folder that ``save_pretrained`` wrote.
        linear: a linear of the language model that LoRA usually targets.
        options: for ``vega3d.patch``: an adapter that must be named, a processor.
        limits: tests of the promises that this host fails by itself, unpatched too, each with the reason. They are
            expected to fail, and it is an error when they do not.
    """

    name: str
    adapter: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    text_batch: Callable[[], Batch]
    grids: tuple[tuple[int, int, int], ...]
    visual: str = "pixel_values"
    generate: Callable[..., Tensor] = _generate
    load: Callable[[Any, Path], nn.Module] = _load
    linear: str = "q_proj"
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)


def random_picture(height: int, width: int, seed: int = 0) -> Any:
    """A PIL image of noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def random_video(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Frames of noise: ``[frames, 3, height, width]`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (frames, 3, height, width), generator=generator, dtype=torch.uint8)
