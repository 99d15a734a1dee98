"""Cameras: what intrinsics and a pose must be, and intrinsics of another resolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts.errors import SceneError

# Text files keep about six digits; a rotation that is off by more than this was not one.
RIGID_TOLERANCE = 1e-2
# Beyond this nobody has measured a place, and squares begin to lose metres.
FARTHEST = 1e6


def check_intrinsics(intrinsics: Tensor, where: str) -> Tensor:
    """``[3, 3]`` float64 on the CPU; a 4x4 matrix, as ScanNet writes them, is cut to its upper left part.

    Args:
        intrinsics: ``[[fx, s, cx], [0, fy, cy], [0, 0, 1]]`` in pixels.
        where: what holds them, for the message.

    Raises:
        SceneError: another shape, NaN or infinity, a focal length that is not positive, or another last row.
    """
    matrix = _matrix(intrinsics, where, "intrinsics", (3, 4))[:3, :3]
    if float(matrix[0, 0]) <= 0 or float(matrix[1, 1]) <= 0:
        raise SceneError(
            f"{where}: focal lengths must be positive, found fx {float(matrix[0, 0]):g} and fy {float(matrix[1, 1]):g}."
        )
    if (matrix[2] - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > 1e-6 or abs(matrix[1, 0]) > 1e-6:
        raise SceneError(
            f"{where}: intrinsics are [[fx, s, cx], [0, fy, cy], [0, 0, 1]], found {matrix.tolist()}. "
            "Check that the matrix is not transposed or normalised."
        )
    return matrix


def check_pose(pose: Tensor, where: str) -> Tensor:
    """``[4, 4]`` float64 on the CPU, rigid and right-handed.

    Args:
        pose: camera-to-world.
        where: what holds it, for the message.

    Raises:
        SceneError: another shape, NaN or infinity, a last row other than (0, 0, 0, 1), an upper left part that is
            no rotation (scaled, sheared) or one of a left-handed frame.
    """
    matrix = _matrix(pose, where, "a pose", (4,))
    if (matrix[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > RIGID_TOLERANCE:
        raise SceneError(
            f"{where}: the last row of a pose is (0, 0, 0, 1), found {matrix[3].tolist()}. "
            "Check that the matrix is not transposed."
        )
    rotation = matrix[:3, :3]
    error = float((rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if error > RIGID_TOLERANCE:
        scale = float(torch.linalg.det(rotation).abs() ** (1 / 3))
        raise SceneError(
            f"{where}: the pose is not rigid, its upper left 3x3 part is no rotation (off by {error:.2g}, scale "
            f"{scale:.3g}). Remove scaling and shearing from it."
        )
    if torch.linalg.det(rotation) < 0:
        raise SceneError(
            f"{where}: the pose is left-handed, its rotation mirrors (determinant -1). Poses are right-handed: "
            "x right, y down, z forward."
        )
    return matrix


def rescaled_intrinsics(intrinsics: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Intrinsics of the same picture at another resolution.

    The centre of the top left pixel is (0, 0), so the picture's corner is at (-0.5, -0.5) and stays there.

    Args:
        intrinsics: ``[3, 3]``, of the pixels of ``size``.
        size: (height, width).
        new_size: (height, width).
    """
    result = intrinsics.clone()
    for axis, scale in ((0, new_size[1] / size[1]), (1, new_size[0] / size[0])):
        result[axis] *= scale
        result[axis, 2] += (scale - 1) / 2
    return result


def _matrix(value: Tensor, where: str, what: str, sides: tuple[int, ...]) -> Tensor:
    shape = tuple(value.shape)
    if shape not in [(side, side) for side in sides]:
        wanted = " or ".join(f"{side}x{side}" for side in sides)
        raise SceneError(f"{where}: expected {what} of {wanted} numbers, found shape {list(shape)}.")
    matrix = value.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise SceneError(f"{where}: NaN or infinity in {what}: {matrix.tolist()}.")
    if float(matrix.abs().max()) > FARTHEST:
        raise SceneError(f"{where}: {what} with a number of {float(matrix.abs().max()):.3g}, over {FARTHEST:g}.")
    return matrix
