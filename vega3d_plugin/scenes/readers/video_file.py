"""A video: all its frames, decoded when they are asked for; no geometry."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...contracts.errors import SceneError
from ..files import FileContent
from ..scene import Scene, View

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif")


def matches(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read(path: Path) -> Scene:
    """Count and measure the frames, which decodes the video once; a header may be wrong.

    Raises:
        VideoError: it cannot be read.
    """
    from ..video import decoded

    total, size = 0, (0, 0)
    for frame in decoded(path, f"Counting frames of {path.name}"):
        size = frame.size if not total else size
        total += 1
    if not total:
        raise SceneError(f"{path} holds no frames: its video stream is empty. Record or export it again.")
    frames = VideoFrames(path)
    digits = max(5, len(str(total - 1)))
    views = tuple(
        View(f"{i:0{digits}d}", size, partial(frames.frame, i), content=FileContent((path,), f"frame {i}"))
        for i in range(total)
    )
    return Scene(path.resolve().stem, str(path), views)


class VideoFrames:
    """Frames of one video by number. Asked for in order, all of them cost one pass over the video.

    Usable from several threads; a copy in another process opens the video anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.lock = Lock()
        self.coming: Iterator[Any] | None = None
        self.next = 0
        self.last: Tensor | None = None

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self._reset()

    def frame(self, index: int) -> Tensor:
        """float32 ``[3, H, W]`` in [0, 1].

        Raises:
            SceneError: the video has become shorter.
            VideoError: it cannot be read any more.
        """
        from ..video import decoded

        with self.lock:
            if self.last is not None and index == self.next - 1:
                return self.last.clone()
            if self.coming is None or index < self.next:
                self.coming, self.next, self.last = decoded(self.path, f"Reading {self.path.name}"), 0, None
            for frame in self.coming:
                self.next += 1
                if self.next > index:
                    pixels = torch.from_numpy(frame.pixels())
                    self.last = pixels.permute(2, 0, 1).float() / 255
                    return self.last.clone()
            self._forget()
            raise SceneError(f"{self.path} has no frame {index} any more: it was changed since it was opened.")

    def _forget(self) -> None:
        self.coming, self.next, self.last = None, 0, None
