"""Can depth be read out of tokens by a linear map? Ridge regression, judged on other worlds than it was fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

from .measure import MovedPoints

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


def depth_score(features: Tensor, depth: Tensor) -> float:
    """Share of the variance of depth (R^2) that a ridge regression explains, on the last third of the worlds.

    Args:
        features: of the first frame's tokens, ``[B, h * w, C]``. The first third of the worlds fits the regression, the
            second chooses its strength.
        depth: ``[B, h * w]``.
    """
    third = len(features) // 3
    parts = [slice(0, third), slice(third, 2 * third), slice(2 * third, None)]
    (x, y), (x_choose, y_choose), (x_judge, y_judge) = (
        (_rows(features[p]), depth[p].double().flatten()) for p in parts
    )
    mean, scale, middle = x.mean(0), x.std(0).clamp_min(1e-6), y.mean()
    x = (x - mean) / scale
    gram = x.T @ x / len(x)

    def score(strength: float, inputs: Tensor, truth: Tensor) -> float:
        weights = torch.linalg.solve(gram + strength * torch.eye(len(gram)), x.T @ (y - middle) / len(x))
        guess = (inputs - mean) / scale @ weights + middle
        return float(1 - (guess - truth).square().sum() / (truth - truth.mean()).square().sum())

    best = max(STRENGTHS, key=lambda strength: score(strength, x_choose, y_choose))
    return score(best, x_judge, y_judge)


def _rows(features: Tensor) -> Tensor:
    return features.double().flatten(0, 1)


def positions(points: MovedPoints) -> Tensor:
    """What is known without looking: powers of the tokens' places ``[B, h * w, 9]``."""
    x, y = (points.centres / points.centres.max() - 0.5).unbind(-1)
    powers = torch.stack([x**i * y**j for i in range(4) for j in range(4) if 0 < i + j < 4], dim=-1)
    return powers.expand(len(points.latents), -1, -1)
