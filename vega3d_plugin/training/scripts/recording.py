"""Videos of what a policy saw, with what the branch did to its tokens drawn over it: ``vega3d run --record``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...analysis.pictures import share_frame
from ...branch.branch import GenerativeBranch
from ...contracts.clips import Clip
from ...contracts.shares import Shares
from ...scenes.video import VideoWriter
from ...storage.writing import write_json

FPS = 10


@dataclass(eq=False)
class _Video:
    """One that is being written.

    Attributes:
        path: of the mp4.
        limits: of the colours.
        rows: one for each observation, for the JSON file beside it.
    """

    path: Path
    limits: tuple[float, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    writer: VideoWriter | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def add(self, picture: NDArray[np.uint8], row: dict[str, Any]) -> None:
        if self.writer is None:
            self.writer = self.stack.enter_context(VideoWriter(self.path, picture.shape[:2], FPS))
        if picture.shape[:2] != self.writer.size:
            height, width = self.writer.size
            picture = np.asarray(Image.fromarray(picture).resize((width, height)))
        self.writer.add(picture)
        self.rows.append(row)

    def close(self) -> None:
        self.stack.close()
        values = {"fps": FPS, "colours_from_to": list(self.limits), "observations": self.rows}
        write_json(self.path.with_suffix(".json"), values, durable=False)


class EpisodeVideos:
    """One video for each episode, and beside it a JSON file with the numbers.

    A video has one picture for each observation that the branch was given: a policy that acts in chunks looks once a
    chunk. Each thread's calls are episodes of their own. Calls of a branch in training are left out.

    Args:
        folder: where ``episode_0000.mp4`` and ``episode_0000.json`` are written.
        mark: put into the names, to tell processes apart.
    """

    def __init__(self, folder: Path, mark: str = "") -> None:
        self.folder, self.mark = folder, mark
        self.written: list[Path] = []
        self._count = 0
        self._open: dict[threading.Thread, _Video] = {}
        self._lock = threading.Lock()

    def record(self, branch: GenerativeBranch, clips: Sequence[Clip], shares: Sequence[Shares]) -> None:
        """Take one observation: its clips, and what the branch did to their tokens."""
        if branch.training:
            return
        views: list[NDArray[np.uint8]] = []
        maps: list[NDArray[np.float32]] = []
        for clip, share in zip(clips, shares, strict=True):
            own = clip.frames[clip.past :]
            for row in range(clip.grid.t):
                views.append(_pixels(own[min(row * len(own) // clip.grid.t, len(own) - 1)]))
                if share.generative is not None:
                    maps.append(share.generative[row].float().cpu().numpy())
        if len(maps) < len(views):
            maps = []
        video = self._video(branch)
        means = [float(each.mean()) for each in maps]
        number = len(video.rows)
        told = "share not defined" if not means else f"generative share {np.mean(means):.3g}"
        caption = f"{number}: {told}, colours {video.limits[0]:.3g} to {video.limits[1]:.3g}"
        row_of = {
            "views": len(views),
            "earlier_frames": [clip.past for clip in clips],
            "generative_share": means,
            "change": [float(share.change.mean()) for share in shares],
            "scale": shares[0].scale,
        }
        video.add(share_frame(views, maps, video.limits, caption), row_of)

    def begin(self) -> None:
        """An episode of this thread begins: the one before is whole."""
        with self._lock:
            video = self._open.pop(threading.current_thread(), None)
        self._close(video)

    def close(self) -> None:
        """Write what is open."""
        with self._lock:
            videos, self._open = list(self._open.values()), {}
        for video in videos:
            self._close(video)

    def _close(self, video: _Video | None) -> None:
        if video is not None:
            video.close()
            self.written.append(video.path)

    def _video(self, branch: GenerativeBranch) -> _Video:
        with self._lock:
            thread = threading.current_thread()
            if thread not in self._open:
                path = self.folder / f"episode_{self._count:04d}{self.mark}.mp4"
                self._open[thread] = _Video(path, _limits(branch))
                self._count += 1
            return self._open[thread]


def _limits(branch: GenerativeBranch) -> tuple[float, float]:
    """Of the colours: all shares that the fuser's parameters allow."""
    limits = branch.fuser.share_limits()
    low, high = limits if limits is not None else (0.0, 1.0)
    return (low, high) if high > low else (0.0, 1.0)


def _pixels(frame: Tensor) -> NDArray[np.uint8]:
    shown = (frame.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


__all__ = ["EpisodeVideos"]
