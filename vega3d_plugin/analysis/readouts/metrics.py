"""How good a read-out is, exactly as the two probing papers measure it.

VidFM3D: ``vidfm3d/utils/eval_utils.py`` (``build_mask``, ``align_pmaps``) and ``models/video_probe_module.py``.
probe3d: ``evals/utils/metrics.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...contracts.errors import AnalysisError


@dataclass(frozen=True)
class DepthMetrics:
    """One value for each image, ``[B]``.

    Attributes:
        d1, d2, d3: share of pixels whose ratio to the truth is below 1.25, 1.25 squared, 1.25 cubed.
        rmse: root of the mean squared error, in the unit of the depth.
    """

    d1: Tensor
    d2: Tensor
    d3: Tensor
    rmse: Tensor


def depth_metrics(predicted: Tensor, true: Tensor, *, scale_invariant: bool = False) -> DepthMetrics:
    """Metrics of depth maps.

    Args:
        predicted: ``[B, 1, H, W]``.
        true: ``[B, 1, H, W]``; 0 where there is none.
        scale_invariant: fit scale and shift to each image's truth first.

    Raises:
        AnalysisError: an image has no depth (released, its error counts as 0).
    """
    if scale_invariant:
        predicted = fit_scale_and_shift(predicted, true)
    valid = true > 0
    count = valid.sum(dim=(1, 2, 3))
    if not count.all():
        empty = torch.nonzero(count == 0).flatten().tolist()
        raise AnalysisError(f"Images {empty} of {len(count)} have no depth, so they have no depth metrics.")
    ratio = torch.maximum(true / predicted.clamp_min(1e-9), predicted / true.clamp_min(1e-9))
    d1, d2, d3 = (((ratio < 1.25**k) & valid).sum(dim=(1, 2, 3)) / count for k in (1, 2, 3))
    squares = torch.where(valid, (true - predicted).square(), 0).sum(dim=(1, 2, 3))
    return DepthMetrics(d1, d2, d3, (squares / count).sqrt())


def fit_scale_and_shift(predicted: Tensor, true: Tensor) -> Tensor:
    """Each image scaled and shifted to its truth by least squares over the pixels with depth; shapes as above.

    An image whose fit has no unique answer (one pixel, or a constant prediction) stays as it is.
    """
    valid = (true > 0).to(predicted.dtype)
    pixels = (1, 2, 3)
    squares, sums, count = (valid * predicted**k for k in (2, 1, 0))
    a, b, c = squares.sum(pixels), sums.sum(pixels), count.sum(pixels)
    product, total = (valid * predicted * true).sum(pixels), (valid * true).sum(pixels)
    determinant = a * c - b * b
    solvable = determinant != 0
    divisor = torch.where(solvable, determinant, 1)
    scale = torch.where(solvable, (c * product - b * total) / divisor, 1)
    shift = torch.where(solvable, (a * total - b * product) / divisor, 0)
    return predicted * scale[:, None, None, None] + shift[:, None, None, None]


def fit_similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity that brings points nearest to others by least squares (Umeyama 1991).

    Args:
        source, target: ``[N, 3]``.

    Returns:
        Rotation ``R [3, 3]``, translation ``t [3]`` and scale ``s``: ``s R x + t``. Fewer than three points, or points
        that all coincide, give the identity.
    """
    identity = torch.eye(3, dtype=source.dtype), source.new_zeros(3), source.new_ones(())
    if len(source) < 3:
        return identity
    centres = source.mean(0), target.mean(0)
    a, b = source - centres[0], target - centres[1]
    spread = a.square().sum()
    if spread == 0:
        return identity
    u, values, v = torch.linalg.svd(b.T @ a)
    # The last axis is flipped where the best orthogonal matrix would be a mirror.
    signs = source.new_ones(3)
    signs[2] = torch.sign(torch.det(u) * torch.det(v))
    rotation = u @ torch.diag(signs) @ v
    scale = (values * signs).sum() / spread
    return rotation, centres[1] - scale * rotation @ centres[0], scale


def align_points(predicted: Tensor, true: Tensor, confidence: Tensor, share: float = 0.25) -> Tensor:
    """Predicted points of one clip brought to the true ones by a similarity, fitted on the most confident ones.

    Args:
        predicted, true: ``[..., 3]``.
        confidence: ``[...]``, of the truth; 0 where there is none.
        share: of the points that the fit uses: those at or above the quantile ``1 - share`` of the confidence.

    Returns:
        ``[..., 3]``, float32.
    """
    predicted, true, confidence = predicted.float(), true.float(), confidence.float()
    threshold = torch.quantile(confidence.flatten(), 1 - share)
    used = (confidence >= threshold) & (confidence > 0)
    rotation, translation, scale = fit_similarity(predicted[used], true[used])
    return scale * predicted @ rotation.T + translation


def point_error(predicted: Tensor, true: Tensor, confidence: Tensor) -> float:
    """The benchmark's ``pmap_mse_aligned`` of one clip: a confidence-weighted mean DISTANCE after alignment.

    Args:
        predicted, true: ``[S, H, W, 3]``.
        confidence: ``[S, H, W]``, of the truth; 0 where there is none.

    Raises:
        AnalysisError: no point has confidence.
    """
    if not (confidence > 0).any():
        raise AnalysisError("No point of this clip has depth, so its points have no error. Check the scene.")
    aligned = align_points(predicted, true, confidence)
    distance = torch.where(confidence > 0, (aligned - true).norm(dim=-1), 0)
    return float((distance * confidence).sum() / (confidence.sum() + 1e-6))
