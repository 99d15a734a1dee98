"""Images and videos of a conversation to pixels, with the frames that the experiment gives the host."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...contracts.errors import FramesError, RowError, Vega3dWarning, VideoError
from ...recipes.blocks import DataSettings
from ...scenes.images import read_image
from ...scenes.pixel_limits import as_rgb
from ...scenes.video import measure, read_range, sample_video
from ...scenes.video_parts import VideoPart, timeline
from .conversation import Medium
from .marks import draw_marks
from .places import frame_places, spread

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """The frames of a video that the host sees.

    Attributes:
        frames: uint8 ``[H, W, 3]`` RGB each, all of one size.
        indices: their places in the video, in the part of it that the row names, or in its list of frames.
        total: frames of the whole video, or part.
        fps: of the whole video; None for frames without a time.
    """

    frames: Sequence[Pixels]
    indices: list[int]
    total: int
    fps: float | None

    @property
    def sampled_fps(self) -> float | None:
        """Frames per second among those that were chosen."""
        if self.fps is None or len(self.indices) < 2 or self.indices[-1] == self.indices[0]:
            return self.fps
        return self.fps * (len(self.indices) - 1) / (self.indices[-1] - self.indices[0])

    def at_least(self, count: int) -> Video:
        """The video with its last frame repeated where it has fewer than ``count``."""
        missing = max(0, count - len(self.indices))
        frames = [*self.frames, *[self.frames[-1]] * missing]
        return replace(self, frames=frames, indices=self.indices + self.indices[-1:] * missing)


def load_image(medium: Medium) -> Image.Image:
    """An image, upright and RGB, with its marks.

    Raises:
        RowError: it cannot be read, or a mark lies outside it.
    """
    return draw_marks(Image.fromarray(_picture(medium.source)), medium.marks)


def load_video(medium: Medium, settings: DataSettings) -> Video:
    """Choose and decode the frames of a video, or of a list of frames or views.

    A video shorter than ``settings.frames`` is taken whole. It is read as everywhere else, see
    :func:`~vega3d_plugin.scenes.video.sample_video`.

    Raises:
        RowError: it cannot be read, its frames differ in size, or the row's part of it ends after it.
    """
    if isinstance(medium.source, Path) and medium.part is not None:
        return _part(medium.source, medium.part, settings)
    if isinstance(medium.source, Path):
        return _file(medium.source, settings)
    sources = medium.source
    indices = frame_places(len(sources), medium.fps, settings)
    frames = [_picture(sources[i]) for i in indices]
    odd = next((i for i, frame in enumerate(frames) if frame.shape != frames[0].shape), None)
    if odd is not None:
        sizes = " and ".join(f"{_size(frames[i])} ({_name(sources[indices[i]])})" for i in (0, odd))
        raise RowError(f"the frames of one video must have one size, found {sizes}; or pass them as images")
    return Video(frames, indices, len(sources), medium.fps)


def chosen(medium: Medium, settings: DataSettings) -> list[Medium]:
    """The frames of a list that :func:`load_video` would choose, unread, as images."""
    places = frame_places(len(medium.source), medium.fps, settings)
    return [Medium("image", medium.source[i], points=medium.points, view=i) for i in places]


def _file(path: Path, settings: DataSettings) -> Video:
    try:
        expected, rate = _measured(path)
        if settings.sampling == "fps":
            _tell_drift(path, settings)
        count = len(frame_places(max(expected, 1), rate, settings)) if settings.sampling == "fps" else settings.frames
        frames, indices = sample_video(path, count, lambda total, some: spread(total, min(total, some), settings))
    except (VideoError, FramesError) as error:
        raise RowError(str(error).rstrip(".")) from error
    once = [i for i, index in enumerate(indices) if index not in indices[:i]]
    kept = [indices[i] for i in once]
    return Video([frames[i] for i in once], kept, max(expected, kept[-1] + 1), rate)


def _tell_drift(path: Path, settings: DataSettings) -> None:
    """Frames are chosen by number, as the released code does; told where that is not by time."""
    drift = timeline(path).drift
    if settings.fps and drift > 1 / settings.fps:
        warnings.warn(
            f"{path}: its frame rate varies, so frames that are chosen evenly by number lie up to {drift:.1f} seconds "
            "from where sampling by time would take them. Convert it to a constant rate (ffmpeg -i IN -r 30 OUT).",
            Vega3dWarning,
            stacklevel=2,
        )


def _part(path: Path, part: VideoPart, settings: DataSettings) -> Video:
    try:
        found = timeline(path)
        frames = found.frames(part)
        places = frame_places(len(frames), found.fps, settings)
        pictures = read_range(path, [frames[i] for i in places])
    except (VideoError, FramesError) as error:
        raise RowError(str(error).rstrip(".")) from error
    return Video(list(pictures), places, len(frames), found.fps)


@lru_cache(maxsize=4096)
def _measured(path: Path) -> tuple[int, float | None]:
    return measure(path)


def _picture(source: Any) -> Pixels:
    if isinstance(source, Path):
        try:
            return read_image(source)
        except VideoError as error:
            raise RowError(str(error).rstrip(".")) from error
    if isinstance(source, Image.Image):
        return np.array(as_rgb(source, RowError, "an image"))
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3:
        return source
    raise RowError(f"an image must be a path, a picture of PIL or uint8 [H, W, 3], found {type(source).__name__}")


def _size(picture: Pixels) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _name(source: Any) -> str:
    return str(source) if isinstance(source, Path) else type(source).__name__
