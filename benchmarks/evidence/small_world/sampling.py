"""Videos from noise, and videos gone on with: do near and far layers keep their own motion?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .measure import TEST_SEED
from .model import predict, to_frames, to_latents
from .worlds import WorldSettings, draw_worlds

FURTHEST = 12  # pixels, of the shifts tried for one motion of the whole frame


def sample(transformer: Any, noise: Tensor, given: Tensor | None = None, steps: int = 40) -> Tensor:
    """Follow the flow from noise to latents ``[B, 3, T, H, W]`` in even steps (Euler).

    Args:
        noise: standard normal, of the result's shape.
        given: clean latents ``[B, 3, T', H, W]`` of the first frames, which stay as they are.
        steps: of the way from noise to data.
    """
    latents, known = noise.clone(), 0 if given is None else given.shape[2]
    if given is not None:
        latents[:, :, :known] = given
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    for now, after in pairwise(sigmas):
        levels = now.expand(noise.shape[0], noise.shape[2]).clone()
        levels[:, :known] = 0.0
        with torch.no_grad():
            clean = predict(transformer, latents, levels)
        moved = clean + (latents - clean) * after / now
        latents[:, :, known:] = moved[:, :, known:]
    return latents


@dataclass(frozen=True)
class Continuation:
    """Mean squared errors of frames that follow two given ones, over a clip's last frames; pixels in [0, 1].

    Attributes:
        model: of the sampled frames.
        still: of repeating the last given frame.
        shifted: of the last given frame under the one shift of the whole frame that fits the truth best: what a model
            without parallax could reach at most. Pixels that the shift brings in from outside count for neither.
        model_shifted: of the sampled frames on those same pixels.
    """

    model: float
    still: float
    shifted: float
    model_shifted: float


def continuation(transformer: Any, clips: int = 32, seed: int = TEST_SEED + 50) -> tuple[Continuation, Tensor, Tensor]:
    """Go on with test worlds after two frames; the errors, the true frames and the sampled ones ``[B, 4, 3, H, W]``."""
    settings = WorldSettings(frames=4, layers=(1, 3), motion=(1.0, 3.0))
    truth = draw_worlds(settings, clips, seed).render()
    latents = to_latents(truth)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + 1))
    frames = to_frames(sample(transformer, noise, latents[:, :, :2]))
    model = (frames[:, 2:] - truth[:, 2:]).square().mean(2)
    still = (truth[:, 1:2] - truth[:, 2:]).square().mean()
    shifted, model_shifted = _best_shift(truth, model)
    return Continuation(float(model.mean()), float(still), shifted, model_shifted), truth, frames


def _best_shift(truth: Tensor, model: Tensor) -> tuple[float, float]:
    """Errors of the best shift of frame 1 for each later frame, and the model's on the pixels that it covers."""
    size = truth.shape[-1]
    best = torch.full(model.shape[:2], torch.inf)
    model_there = torch.zeros_like(best)
    for dy in range(-FURTHEST, FURTHEST + 1):
        for dx in range(-FURTHEST, FURTHEST + 1):
            to_y, to_x = slice(max(0, dy), size + min(0, dy)), slice(max(0, dx), size + min(0, dx))
            of_y, of_x = slice(max(0, -dy), size - max(0, dy)), slice(max(0, -dx), size - max(0, dx))
            error = (truth[:, 1:2, :, of_y, of_x] - truth[:, 2:, :, to_y, to_x]).square().mean(dim=(2, 3, 4))
            better = error < best
            best = torch.where(better, error, best)
            model_there = torch.where(better, model[:, :, to_y, to_x].mean(dim=(2, 3)), model_there)
    return float(best.mean()), float(model_there.mean())
