"""Frames turned as players show them: phones store videos lying on their side, with a display matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import VideoError


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame, and how it is shown.

    Attributes:
        frame: PyAV's, as it is stored.
        turn: degrees counterclockwise that the video is turned by when it is shown.
        path: of the video, for messages.
    """

    frame: Any
    turn: int
    path: Path

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` RGB, upright.

        Raises:
            VideoError: the video is turned by something else than quarters.
        """
        if self.turn % 90:
            raise VideoError(
                f"{self.path} is shown turned by another angle than a quarter ({self.turn} degrees). Export it again, "
                "so that its frames are upright."
            )
        pixels: NDArray[np.uint8] = self.frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, k=self.turn // 90)) if self.turn else pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        stored = self.frame.height, self.frame.width
        return (stored[1], stored[0]) if self.turn % 180 else stored


def turn_of(frame: Any) -> int:
    """Degrees counterclockwise of a frame's display matrix; 0 without one.

    Not read from ``frame.side_data``: a frame that was asked for that keeps itself in memory, with its decoder's
    locks, which a forked data loader then waits for.
    """
    return round(getattr(frame, "rotation", 0) or 0)
