"""A part of a video: from when to when, and which of its frames those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import FramesError
from .video import frame_pts

#: Seconds by which a time that is written down may miss a frame's own.
SLACK = 1e-3
#: How a part is written, by unit: names of its first and its last bound.
KEYS: dict[Literal["seconds", "frames"], tuple[str, str]] = {
    "seconds": ("start", "end"),
    "frames": ("start_frame", "end_frame"),
}


@dataclass(frozen=True)
class VideoPart:
    """A stretch of a video, counted from its first frame.

    Attributes:
        start: its beginning, which belongs to it.
        end: its end, which does not; None: that of the video.
        unit: ``seconds``, or ``frames`` from 0.
    """

    start: float = 0.0
    end: float | None = None
    unit: Literal["seconds", "frames"] = "seconds"

    def __str__(self) -> str:
        end = "the end" if self.end is None else f"{self.end:g}"
        return f"{self.unit} {self.start:g} to {end}"


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        name: of the video, for messages.
        times: seconds from the first frame, ascending; None where the file does not say.
        total: frames.
        fps: on average; None where it is not known.
    """

    name: str
    times: NDArray[np.float64] | None
    total: int
    fps: float | None

    def frames(self, part: VideoPart) -> range:
        """The frames of a part: those that begin in it.

        Raises:
            FramesError: it ends after the video, or holds no frame; says how long the video is.
        """
        if part.unit == "frames":
            found = range(int(part.start), self.total if part.end is None else int(part.end))
            late = found.stop > self.total
        elif not self.fps:
            raise FramesError(f"{self.name} says no times of its frames: write its part as start_frame and end_frame.")
        else:
            times = np.arange(self.total) / self.fps if self.times is None else self.times
            bounds = [part.start, np.inf if part.end is None else part.end]
            first, last = (int(i) for i in np.searchsorted(times, np.array(bounds) - SLACK))
            found = range(first, last)
            # The last frame is shown for a while; how long is not always told.
            late = part.end is not None and part.end > times[-1] + 1.5 / self.fps + SLACK
        if late or not found:
            what = "end after it" if late else "hold none of its frames"
            raise FramesError(f"{self.name} has {self._length()}: {part} {what}. Correct the bounds of the part.")
        return found

    @property
    def drift(self) -> float:
        """Largest distance of a frame from where a constant rate would have it, in seconds; 0 where no time is told."""
        if self.times is None or not self.fps or self.total < 2:
            return 0.0
        even = np.linspace(self.times[0], self.times[-1], self.total)
        return float(np.abs(self.times - even).max())

    def _length(self) -> str:
        if not self.fps:
            return f"{self.total} frames"
        long = self.total / self.fps if self.times is None else self.times[-1] + 1 / self.fps
        return f"{self.total} frames, {long:.3f} seconds"


def timeline(path: Path) -> Timeline:
    """When the frames of a video file are shown, told by its packets: nothing is decoded.

    Raises:
        VideoError: it is no video.
    """
    found = frame_pts(path)
    times = None if found.pts is None else (found.pts - found.pts[0]) * found.second
    return Timeline(str(path), times, found.total, found.fps)


def read_part(named: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> VideoPart | None:
    """The part that keys of a row name; None where they name none.

    Args:
        named: has ``start`` and ``end`` (seconds), or ``start_frame`` and ``end_frame``; each may be left out.
        keys: other names that ``named`` may have for these.

    Raises:
        FramesError: no such numbers, both units, or an end that is not after the start.
    """
    given = {name: named[other] for other, name in (keys or {}).items() if named.get(other) is not None}
    given |= {name: named[name] for pair in KEYS.values() for name in pair if named.get(name) is not None}
    units = [unit for unit, pair in KEYS.items() if any(name in given for name in pair)]
    if not units:
        return None
    if len(units) > 1:
        raise FramesError(f"a part is written in seconds or in frames, found {', '.join(given)}")
    (unit,) = units
    for name, value in given.items():
        kind = "a number of seconds" if unit == "seconds" else "a whole number of frames"
        right = isinstance(value, int | float if unit == "seconds" else int) and not isinstance(value, bool)
        if not right or not 0 <= value < float("inf"):
            raise FramesError(f"`{name}` must be {kind}, 0 or more, found {value!r}")
    first, last = (given.get(name) for name in KEYS[unit])
    part = VideoPart(first or 0, last, unit)
    if part.end is not None and part.end <= part.start:
        raise FramesError(f"{part}: the end must come after the start")
    return part
