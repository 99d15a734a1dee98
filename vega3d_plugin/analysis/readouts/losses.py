"""What read-outs are trained with, exactly as in the two probing papers.

VidFM3D: ``vidfm3d/utils/loss.py`` (``camera_loss``, ``point_loss``, ``depth_loss``). probe3d:
``evals/utils/losses.py`` (``DepthLoss``, ``sig_loss``, ``gradient_loss``, ``depth_si_loss``). Where they replace NaN by
0, these raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import AnalysisError

#: No single term counts more than this, as released.
_CAP = 100.0


@dataclass(frozen=True)
class CameraLoss:
    """Huber losses of the nine numbers; scalars."""

    total: Tensor
    translation: Tensor
    rotation: Tensor
    field_of_view: Tensor


@dataclass(frozen=True)
class DenseLoss:
    """Losses of points or depth; scalars.

    Attributes:
        total: over all views.
        first, others: over the first view, and over the others.
        gradient, gradient_first, gradient_others: losses of the spatial gradients, where they were asked for.
    """

    total: Tensor
    first: Tensor
    others: Tensor
    gradient: Tensor | None = None
    gradient_first: Tensor | None = None
    gradient_others: Tensor | None = None


def camera_loss(
    predicted: Sequence[Tensor],
    true: Tensor,
    gamma: float = 0.6,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5),
) -> CameraLoss:
    """Huber loss of cameras, over the refinements of a prediction.

    Args:
        predicted: the refinements, first to last, each ``[B, S, 9]``; the last of n counts ``1 / n``, each earlier one
            ``gamma`` times the next.
        true: ``[B, S, 9]``.
        gamma: see above.
        weights: of translation, rotation and field of view.
    """
    parts = [slice(0, 3), slice(3, 7), slice(7, 9)]
    sums = [true.new_zeros(()) for _ in parts]
    for i, cameras in enumerate(predicted):
        weight = gamma ** (len(predicted) - 1 - i) / len(predicted)
        for k, part in enumerate(parts):
            terms = F.huber_loss(cameras[..., part], true[..., part], reduction="none")
            sums[k] = sums[k] + weight * _finite(terms, "camera loss").clamp(max=_CAP).mean()
    total = sum((w * s for w, s in zip(weights, sums, strict=True)), true.new_zeros(()))
    return CameraLoss(total, *sums)


def dense_loss(
    predicted: Tensor,
    true: Tensor,
    confidence: Tensor,
    valid: Tensor | None = None,
    *,
    normalise: bool = False,
    gradients: bool = False,
) -> DenseLoss:
    """Confidence-weighted distance between predicted and true maps: ``point_loss`` and ``depth_loss``.

    Args:
        predicted, true: ``[B, S, H, W, C]``: points (C = 3) or depth (C = 1).
        confidence: ``[B, S, H, W]``, of the truth.
        valid: bool ``[B, S, H, W]``, pixels that count; None for all.
        normalise: divide both sides by their mean distance first, as the published points are.
        gradients: also the loss of spatial gradients at four scales (weight 0 in the published runs).

    Raises:
        AnalysisError: values that are not finite, or no pixel that counts.
    """
    valid = torch.ones_like(confidence, dtype=torch.bool) if valid is None else valid.bool()
    if not valid.any():
        raise AnalysisError("No pixel of this batch has depth, so there is nothing to compare. Check the scenes.")
    if normalise:
        predicted, true = _unit_distance(predicted, valid), _unit_distance(true, valid)
    # Invalid pixels may hold anything, NaN included: they are dropped, not multiplied by zero.
    per_view = []
    for views in (slice(0, 1), slice(1, None)):
        here = valid[:, views]
        distance = (true[:, views][here] - predicted[:, views][here]).norm(dim=-1)
        distance = _finite(distance, "point or depth loss").clamp(max=_CAP)
        per_view.append((distance * confidence[:, views][here]).clamp(max=_CAP))
    first, others = (terms.mean() if len(terms) else true.new_zeros(()) for terms in per_view)
    total = torch.cat(per_view).mean()
    if not gradients:
        return DenseLoss(total, first, others)
    slopes = [
        _gradient_loss(predicted[:, v], true[:, v], confidence[:, v], valid[:, v])
        for v in (slice(0, 1), slice(1, None))
    ]
    return DenseLoss(total, first, others, slopes[0] + slopes[1], *slopes)


def _unit_distance(points: Tensor, valid: Tensor) -> Tensor:
    """Points divided by the mean distance of a clip's valid ones from the origin."""
    distances = torch.where(valid, points.norm(dim=-1), 0).sum(dim=(1, 2, 3))
    scale = (distances / (valid.sum(dim=(1, 2, 3)) + 1e-3)).clamp(1e-3, 1e3)
    return points / scale[:, None, None, None, None]


def _gradient_loss(predicted: Tensor, true: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
    """Of the four scales 1, 2, 4, 8, the mean; zero for no views."""
    total = true.new_zeros(())
    for step in (1, 2, 4, 8):
        p, t = (values.flatten(0, 1)[:, ::step, ::step] for values in (predicted, true))
        c, m = (values.flatten(0, 1)[:, ::step, ::step, None] for values in (confidence, valid))
        difference = torch.where(m, p - t, 0)
        terms = true.new_zeros(())
        for dim in (1, 2):
            length = difference.shape[dim]
            if length < 2:
                continue
            ahead, behind = (difference.narrow(dim, start, length - 1) for start in (1, 0))
            both = m.narrow(dim, 1, length - 1) & m.narrow(dim, 0, length - 1)
            slope = torch.where(both, (ahead - behind).abs(), 0).clamp(max=_CAP)
            terms = terms + (slope * c.narrow(dim, 1, length - 1)).sum()
        count = m.sum() * p.shape[-1]
        total = total + terms / count if count else total
    return total / 4


def depth_loss(predicted: Tensor, true: Tensor, furthest: float = 10.0) -> Tensor:
    """probe3d's ``DepthLoss``: 10 times the scale-invariant log loss plus half the log-gradient loss.

    Truth beyond ``furthest`` metres does not count. (Released, it is set to 0 in the caller's own tensor.)

    Args:
        predicted: ``[B, 1, H, W]`` in metres, above 0.
        true: ``[B, 1, H, W]`` in metres; 0 where there is none.
        furthest: metres.

    Raises:
        AnalysisError: no pixel counts, or predictions that are not finite.
    """
    true = torch.where(true > furthest, 0, true)
    return 10 * log_variance_loss(predicted, true) + 0.5 * log_gradient_loss(predicted, true)


def log_variance_loss(predicted: Tensor, true: Tensor, weight: float = 0.85, eps: float = 1e-3) -> Tensor:
    """The scale-invariant log loss (``sig_loss``) over all valid pixels of a batch together; shapes as above."""
    valid = _with_depth(true)
    g = (_finite(predicted[valid], "depth loss") + eps).log() - (true[valid] + eps).log()
    return (g.square().mean() - weight * g.mean().square()).sqrt()


def log_variance_loss_per_image(
    predicted: Tensor, true: Tensor, alpha: float = 10.0, weight: float = 0.85, eps: float = 1e-5
) -> Tensor:
    """The same with its root taken for each image (``depth_si_loss``), the mean over images times ``alpha``."""
    valid = (true > 0).float()
    count = valid.sum(dim=(-1, -2)).clamp_min(1)
    difference = (predicted.clamp_min(eps).log() - true.clamp_min(eps).log()) * valid
    mean_square = difference.square().sum(dim=(-2, -1)) / count
    square_mean = (difference.sum(dim=(-2, -1)) / count).square()
    return alpha * (mean_square - weight * square_mean).sqrt().mean()


def log_gradient_loss(predicted: Tensor, true: Tensor, eps: float = 1e-3) -> Tensor:
    """Differences of log depth over TWO pixels, at the strides 1, 2, 4 and 6 (``gradient_loss``); shapes as above."""
    _with_depth(true)
    total = true.new_zeros(())
    for step in (1, 2, 4, 6):
        p, t = predicted[..., ::step, ::step], true[..., ::step, ::step]
        valid = t > 0
        if not valid.any():
            continue
        difference = torch.where(valid, (p + eps).log() - (t + eps).log(), 0)
        terms = true.new_zeros(())
        for dim in (-2, -1):
            length = t.shape[dim]
            if length < 3:
                continue
            here, there = (difference.narrow(dim, start, length - 2) for start in (0, 2))
            both = valid.narrow(dim, 0, length - 2) & valid.narrow(dim, 2, length - 2)
            terms = terms + torch.where(both, (here - there).abs(), 0).sum()
        total = total + terms / valid.sum()
    return total


def _with_depth(true: Tensor) -> Tensor:
    valid = true > 0
    if not valid.any():
        raise AnalysisError("No pixel of this batch has depth, so there is nothing to compare. Check the scenes.")
    return valid


def _finite(values: Tensor, what: str) -> Tensor:
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise AnalysisError(
            f"The {what} has {bad} values of {values.numel()} that are NaN or infinite. "
            "Check the features for such values, and lower the learning rate."
        )
    return values
