"""Frames turned as players show them: phones store videos lying on their side or mirrored, with a display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import VideoError

# How far a matrix may be from quarter turns and mirrors, as a share of its largest entry: a degree.
_SLACK = 0.02


@dataclass(frozen=True)
class Showing:
    """How stored pixels are shown. As they are stored: all False.

    Attributes:
        swapped: rows become columns, before the others.
        mirrored: left and right are exchanged.
        upside_down: above and below are exchanged.
    """

    swapped: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W, 3]`` as it is shown."""
        if self == Showing():
            return pixels
        if self.swapped:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame, and how it is shown.

    Attributes:
        frame: PyAV's, as it is stored.
        showing: how it is shown.
    """

    frame: Any
    showing: Showing

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` RGB, upright; what is transparent is shown as if it were not."""
        return self.showing(self.frame.to_ndarray(format="rgb24"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        stored = self.frame.height, self.frame.width
        return (stored[1], stored[0]) if self.showing.swapped else stored


def showing_of(path: Path, number: int) -> Showing:
    """How a video is shown, by the display matrix of its first frame.

    The frame is decoded for this alone, without threads: a frame of PyAV whose side data was asked for keeps itself in
    memory, with its decoder's locks, and a forked data loader would wait for those.

    Args:
        path: of the video.
        number: of its stream.

    Raises:
        VideoError: the video is turned by something else than quarters.
        av.FFmpegError: it cannot be decoded.
    """
    with av.open(str(path)) as container:
        stream: Any = container.streams[number]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            data = frame.side_data.get("DISPLAYMATRIX")
            return Showing() if data is None else of_matrix(bytes(data), path)
    return Showing()


def of_matrix(data: bytes, path: Path) -> Showing:
    """How a display matrix shows pixels: 9 numbers, by which ``(x, y)`` becomes ``(a x + c y, b x + d y)``.

    Source: FFmpeg ``libavutil/display.h``.

    Raises:
        VideoError: it turns by something else than quarters, or is none.
    """
    try:
        a, b, _, c, d = struct.unpack("=9i", data)[:5]
    except struct.error:
        raise VideoError(
            f"{path} has a display matrix of {len(data)} bytes, 36 are expected. Export it again."
        ) from None
    slack = _SLACK * max(map(abs, (a, b, c, d)))
    if max(abs(b), abs(c)) <= slack < min(abs(a), abs(d)):
        return Showing(False, a < 0, d < 0)
    if max(abs(a), abs(d)) <= slack < min(abs(b), abs(c)):
        return Showing(True, c < 0, b < 0)
    raise VideoError(
        f"{path} is shown turned by another angle than a quarter (display matrix {a}, {b}, {c}, {d}). Export it again, "
        "so that its frames are upright."
    )
