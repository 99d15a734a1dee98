"""Camera models of nerfstudio and COLMAP to intrinsics; a lens that bends lines is refused, or told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import SceneError
from ...warnings import Vega3dWarning
from ..cameras import rescaled_intrinsics

#: Coefficients of the model that OpenCV, nerfstudio and COLMAP share.
BROWN = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
# A tenth of a pixel is below what features can tell.
_NOTHING = 0.1


class DistortionWarning(Vega3dWarning):
    """The lens bends lines, and the scene is used as if it did not."""


def pinhole(
    focal: tuple[float, float],
    middle: tuple[float, float],
    distortion: Mapping[str, float],
    size: tuple[int, int],
    where: str,
    ignore: bool,
) -> Tensor:
    """Intrinsics ``[3, 3]`` for pixels whose centre, top left, is (0, 0).

    Args:
        focal: (fx, fy), pixels.
        middle: (cx, cy) as nerfstudio and COLMAP write it: the centre of the top left pixel is (0.5, 0.5).
        distortion: coefficients of Brown's model, those of :data:`BROWN`.
        size: (height, width) that these belong to.
        where: what holds them, for messages.
        ignore: take a lens that bends lines for one that does not, with a warning.

    Raises:
        SceneError: numbers that cannot be, or distortion of over a tenth of a pixel without ``ignore``.

    Warns:
        DistortionWarning: with ``ignore``, by how many pixels places are wrong.
    """
    if not all(math.isfinite(value) and 0 < value < 1e7 for value in focal):
        raise SceneError(f"{where}: focal lengths must be positive, found {focal[0]:g} and {focal[1]:g}.")
    shift = _largest_shift(focal, middle, distortion, size)
    if not shift <= _NOTHING:
        named = ", ".join(f"{name} {value:g}" for name, value in distortion.items() if value)
        told = f"{where}: the lens bends lines ({named}), by up to {shift:.1f} pixels of {size[1]}x{size[0]}"
        if not ignore:
            raise SceneError(
                f"{told}. Undistort the pictures first (`colmap image_undistorter`, or the data set's own undistorted "
                "ones), or pass `ignore_distortion` to accept the error."
            )
        warnings.warn(f"{told}. It is ignored, as asked.", DistortionWarning, stacklevel=3)
    (fx, fy), (cx, cy) = focal, middle
    return torch.tensor([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], dtype=torch.float64)


def for_picture(intrinsics: Tensor, size: tuple[int, int], picture: tuple[int, int], where: str) -> Tensor:
    """The intrinsics of a picture that may be a smaller copy of the one that they were written for.

    Args:
        intrinsics: ``[3, 3]``.
        size: (height, width) that the file tells.
        picture: (height, width) of the picture.
        where: what holds them, for the message.

    Raises:
        SceneError: another aspect ratio: cropped, or another picture.
    """
    if size == picture:
        return intrinsics
    # Rounding a side to whole pixels changes it by up to one.
    if abs(size[0] * picture[1] - size[1] * picture[0]) > max(*size, *picture) * 1.5:
        raise SceneError(
            f"{where}: its intrinsics are those of a picture of {size[1]}x{size[0]}, the picture is "
            f"{picture[1]}x{picture[0]}: no smaller or larger copy of it."
        )
    return rescaled_intrinsics(intrinsics, size, picture)


def _largest_shift(
    focal: tuple[float, float], middle: tuple[float, float], distortion: Mapping[str, float], size: tuple[int, int]
) -> float:
    """By how many pixels the lens moves the corners and the middles of the sides, at most."""
    if not any(distortion.values()):
        return 0.0
    k1, k2, p1, p2, k3, k4, k5, k6 = (float(distortion.get(name, 0.0)) for name in BROWN)
    largest = 0.0
    for u in (0.0, size[1] / 2, size[1]):
        for v in (0.0, size[0] / 2, size[0]):
            x, y = (u - middle[0]) / focal[0], (v - middle[1]) / focal[1]
            r = x * x + y * y
            try:
                radial = (1 + r * (k1 + r * (k2 + r * k3))) / (1 + r * (k4 + r * (k5 + r * k6)))
            except ZeroDivisionError:
                return math.inf
            dx = x * (radial - 1) + 2 * p1 * x * y + p2 * (r + 2 * x * x)
            dy = y * (radial - 1) + p1 * (r + 2 * y * y) + 2 * p2 * x * y
            largest = max(largest, math.hypot(dx * focal[0], dy * focal[1]))
    return largest
