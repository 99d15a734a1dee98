"""How far apart are the tokens of a picture? Worlds beside the photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .measure import MOVING, PALE
from .model import to_latents
from .worlds import draw_worlds

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
SIZE, PATCH = 24, 3


def nearest_token(frames: Tensor) -> float:
    """Mean distance of a token to the nearest other one of its frame, root mean square over its values, in latents.

    Args:
        frames: ``[B, 3, 24, 24]`` in [0, 1].
    """
    latents = to_latents(frames[:, None])[:, :, 0]
    tokens = F.unfold(latents, PATCH, stride=PATCH).transpose(1, 2)
    distance = torch.cdist(tokens, tokens) / tokens.shape[-1] ** 0.5
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return float(distance.amin(-1).mean())


def crops(file: Path) -> Tensor:
    """Nine squares each of the picture's height and of half of it, evenly spread, as frames ``[18, 3, 24, 24]``."""
    picture = Image.open(file).convert("RGB")
    frames = []
    for side in (min(picture.size), min(picture.size) // 2):
        for left in _spread(picture.width - side):
            for top in _spread(picture.height - side):
                square = picture.crop((left, top, left + side, top + side))
                frames.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def _spread(room: int) -> tuple[int, int, int]:
    return 0, room // 2, room


def table() -> Iterator[str]:
    """Rows for RESULTS.md."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    yield "| pictures | distance to the nearest other token |\n| --- | --- |"
    for name, settings in {"worlds, full contrast": MOVING, "worlds, contrast 0.3 to 1": PALE}.items():
        yield f"| {name} | {nearest_token(draw_worlds(settings, 96, 1).render()[:, 0]):.2f} |"
    for photograph in PHOTOGRAPHS:
        yield f"| {photograph} | {nearest_token(crops(folder / photograph)):.2f} |"
