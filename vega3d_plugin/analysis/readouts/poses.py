"""Cameras as nine numbers, and how far two sets of cameras are apart.

The definitions are those of VidFM3D (``vidfm3d/utils/metrics.py``, ``data/components/video_probe_dataset.py``) and of
VGGT (``vggt/utils/pose_enc.py``, ``rotation.py``). Extrinsics here are world-to-camera ``[R | t]``, OpenCV axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import AnalysisError

#: Histogram limit of the released AUC, in degrees; there is one bin more than that.
LIMIT = 30


def matrix_to_quaternion(rotations: Tensor) -> Tensor:
    """Rotation matrices ``[..., 3, 3]`` to unit quaternions ``[..., 4]`` (x, y, z, w) with ``w >= 0``."""
    m = rotations
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Twice the absolute value of w, x, y, z; the largest one is divided by, as the best conditioned.
    doubled = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], dim=-1)
    doubled = doubled.clamp_min(0).sqrt()
    w, x, y, z = (doubled[..., i] ** 2 for i in range(4))
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    # Four times the product of one component with all of (x, y, z, w).
    rows = torch.stack(
        [
            torch.stack([a, b, c, w], dim=-1),
            torch.stack([x, d, e, a], dim=-1),
            torch.stack([d, y, f, b], dim=-1),
            torch.stack([e, f, z, c], dim=-1),
        ],
        dim=-2,
    )
    best = doubled.argmax(dim=-1)[..., None]
    chosen = rows.gather(-2, best[..., None].expand(*best.shape, 4)).squeeze(-2)
    quaternion = chosen / (2 * doubled.gather(-1, best))
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Quaternions ``[..., 4]`` (x, y, z, w) of any length but zero to rotation matrices ``[..., 3, 3]``."""
    x, y, z, w = quaternions.unbind(-1)
    s = 2 / quaternions.square().sum(-1).clamp_min(torch.finfo(quaternions.dtype).tiny)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def encode_cameras(extrinsics: Tensor, intrinsics: Tensor, size: tuple[float, float]) -> Tensor:
    """Cameras as nine numbers: translation, quaternion (x, y, z, w), vertical and horizontal field of view in radians.

    Args:
        extrinsics: ``[..., 3, 4]`` world-to-camera.
        intrinsics: ``[..., 3, 3]`` in pixels of an image of ``size``.
        size: height and width in pixels.

    Returns:
        ``[..., 9]``, float32.
    """
    height, width = size
    fields = [2 * torch.atan(side / 2 / intrinsics[..., i, i]) for side, i in ((height, 1), (width, 0))]
    quaternion = matrix_to_quaternion(extrinsics[..., :3, :3])
    return torch.cat([extrinsics[..., :3, 3], quaternion, torch.stack(fields, dim=-1)], dim=-1).float()


def decode_extrinsics(cameras: Tensor) -> Tensor:
    """Nine numbers ``[..., 9]`` to extrinsics ``[..., 3, 4]``, the quaternion of any length."""
    return torch.cat([quaternion_to_matrix(cameras[..., 3:7]), cameras[..., :3, None]], dim=-1)


def relative_pose_errors(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of the relative pose of every pair of views.

    Args:
        predicted, true: extrinsics ``[B, S, 3, 4]``.

    Returns:
        Rotation error (0 to 180) and error of the translation's direction (0 to 90, its sign does not count), in
        degrees, each ``[B * S * (S - 1) / 2]``: clip after clip, pairs in the order (0, 1), (0, 2), ... (1, 2), ...
    """
    first, second = torch.combinations(torch.arange(true.shape[1], device=true.device)).unbind(-1)
    pairs = [_relative(e[:, first].flatten(0, 1), e[:, second].flatten(0, 1)) for e in (predicted, true)]
    (rotation, translation), (true_rotation, true_translation) = pairs
    return _rotation_angle(rotation, true_rotation), _direction_angle(translation, true_translation)


def _relative(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the first extrinsics times the second: rotation and translation."""
    inverse = first[..., :3, :3].mT
    shift = (second[..., :3, 3] - first[..., :3, 3])[..., None]
    return inverse @ second[..., :3, :3], (inverse @ shift)[..., 0]


def _rotation_angle(a: Tensor, b: Tensor) -> Tensor:
    # Of twice the angle between quaternions, as released; the floor is theirs too.
    dot = (matrix_to_quaternion(a) * matrix_to_quaternion(b)).sum(-1)
    return torch.arccos(1 - 2 * (1 - dot.square()).clamp_min(1e-15)).rad2deg()


def _direction_angle(a: Tensor, b: Tensor) -> Tensor:
    a, b = (v / (v.norm(dim=-1, keepdim=True) + 1e-15) for v in (a, b))
    missing = (1 - (a * b).sum(-1).square()).clamp_min(1e-15)
    return torch.acos((1 - missing).clamp_min(0).sqrt()).rad2deg()


def pose_auc(rotation: Tensor, translation: Tensor, threshold: int) -> float:
    """The released area under the curve of accuracy over error thresholds.

    The larger of both errors of a pair goes into one of 31 bins over 0 to 30 degrees; the answer is the mean of the
    first ``threshold`` cumulated bins.

    Args:
        rotation, translation: degrees, ``[pairs]``.
        threshold: 1 to 31; the papers use 5 and 30.

    Returns:
        0 (worst) to 1.

    Raises:
        AnalysisError: no pairs, errors that are not finite, or a threshold outside 1..31.
    """
    worst = torch.maximum(rotation, translation).float()
    if not 1 <= threshold <= LIMIT + 1:
        raise AnalysisError(f"The threshold of the pose AUC must lie in 1..{LIMIT + 1} degrees, found {threshold}.")
    if not len(worst) or not worst.isfinite().all():
        bad = int((~worst.isfinite()).sum())
        raise AnalysisError(f"The pose AUC needs finite errors of at least one pair, found {len(worst)}, {bad} NaN.")
    counts = torch.histc(worst, bins=LIMIT + 1, min=0, max=LIMIT)
    return float((counts / len(worst)).cumsum(0)[:threshold].mean())


@dataclass(frozen=True)
class RebasedClip:
    """A clip in the coordinates of one of its cameras, in units of the mean distance of that camera's points.

    Attributes:
        extrinsics: ``[S, 3, 4]``; that camera's is the identity.
        points: ``[S, H, W, 3]``.
        depth: ``[S, H, W]``.
        scale: what every length was multiplied by.
    """

    extrinsics: Tensor
    points: Tensor
    depth: Tensor
    scale: float


def rebase(
    extrinsics: Tensor, points: Tensor, depth: Tensor, valid: Tensor | None = None, reference: int = 0
) -> RebasedClip:
    """Express a clip in the coordinates and the scale of one of its cameras.

    As released (``invert_pose_ref_and_scale``), but for pixels without depth, which are left out of the mean.

    Args:
        extrinsics: world-to-camera ``[S, 3, 4]``.
        points: in the world ``[S, H, W, 3]``.
        depth: ``[S, H, W]`` in the unit of the points.
        valid: bool ``[S, H, W]``, where there is depth; None for everywhere.
        reference: index of the camera.

    Raises:
        AnalysisError: that camera sees no point, or points at a mean distance outside 1e-3..1e4 (as released, where
            the clip is left unscaled without a word).
    """
    whole = torch.eye(4, dtype=extrinsics.dtype, device=extrinsics.device).repeat(len(extrinsics), 1, 1)
    whole[:, :3] = extrinsics
    base = whole[reference]
    back = torch.eye(4, dtype=base.dtype, device=base.device)
    back[:3, :3], back[:3, 3] = base[:3, :3].T, -base[:3, :3].T @ base[:3, 3]
    moved = (whole @ back)[:, :3]
    seen = points @ base[:3, :3].T.to(points.dtype) + base[:3, 3].to(points.dtype)
    distances = seen[reference].norm(dim=-1)
    distances = distances.flatten() if valid is None else distances[valid[reference]]
    mean = float(distances.mean()) if len(distances) else float("nan")
    if not 1e-3 <= mean <= 1e4:
        raise AnalysisError(
            f"The points of view {reference} of a clip lie {mean:.4g} from its camera on average ({len(distances)} "
            "points); expected 0.001 to 10000. Check the unit of the depth, and that the view has depth."
        )
    moved = torch.cat([moved[..., :3], moved[..., 3:] / mean], dim=-1)
    return RebasedClip(moved, seen / mean, depth / mean, 1 / mean)
