"""Frames turned as players show them: phones store videos lying on their side, with a display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import VideoError

Matrix = tuple[int, ...]


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame, and how it is shown.

    Attributes:
        frame: PyAV's, as it is stored.
        matrix: the display matrix of the video, None without one.
        path: of the video, for messages.
    """

    frame: Any
    matrix: Matrix | None
    path: Path

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` RGB, upright.

        Raises:
            VideoError: the matrix does more than quarter turns and mirroring.
        """
        return upright(self.frame.to_ndarray(format="rgb24"), self.matrix, self.path)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        stored = self.frame.height, self.frame.width
        turned = self.matrix is not None and abs(self.matrix[1]) > abs(self.matrix[0])
        return (stored[1], stored[0]) if turned else stored


def display_matrix(frame: Any) -> Matrix | None:
    """The nine numbers of a frame's display matrix, in 16.16 (the last column in 2.30); None without one."""
    for found in frame.side_data:
        if getattr(found.type, "name", found.type) == "DISPLAYMATRIX":
            return struct.unpack("=9i", bytes(found)[:36])
    return None


def upright(pixels: NDArray[np.uint8], matrix: Matrix | None, path: Path) -> NDArray[np.uint8]:
    """A frame turned and mirrored as the display matrix says.

    Raises:
        VideoError: the matrix does more than quarter turns and mirroring.
    """
    if matrix is None:
        return pixels
    a, b, c, d = (value / 65536 for value in (matrix[0], matrix[1], matrix[3], matrix[4]))
    straight = max(abs(b), abs(c)) < 1e-3 < min(abs(a), abs(d))
    turned = max(abs(a), abs(d)) < 1e-3 < min(abs(b), abs(c))
    if not (straight or turned):
        raise VideoError(
            f"{path} is shown turned by another angle than a quarter (display matrix {a:.2f}, {b:.2f}, {c:.2f}, "
            f"{d:.2f}). Export it again, so that its frames are upright."
        )
    # A stored point (x, y) is shown at (a x + c y, b x + d y).
    if turned:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1])
