"""A folder of images, one image, or a video as frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from ..contracts.clips import uniform_indices
from ..contracts.errors import VideoError, near_misses
from .pixel_limits import as_rgb, opened_picture
from .video import sample_video

Pixels = NDArray[np.uint8]


IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Frames:
    """Frames and where they come from.

    Attributes:
        pictures: uint8 ``[H, W, 3]`` RGB each; images may differ in size.
        indices: their places in the video, or among the images in order.
        names: of the images; empty for a video.
    """

    pictures: Sequence[Pixels]
    indices: list[int]
    names: list[str]

    @property
    def labels(self) -> list[str]:
        """What to call each frame."""
        return self.names or [f"frame {index}" for index in self.indices]


def read_frames(path: Path, count: int) -> Frames:
    """At most ``count`` frames, spread evenly, both ends included; a short video is not stretched.

    Images of a folder come in the order of their names, in which numbers count by their value.

    Raises:
        VideoError: nothing there (with near misses), no video, no images, or a damaged file.
    """
    if path.is_dir():
        images = in_order(find_images(path))
        if not images:
            raise VideoError(_no_images(path))
        indices = _spread(len(images), count)
        chosen = [images[i] for i in indices]
        return Frames([read_image(image) for image in chosen], indices, [image.name for image in chosen])
    if not path.exists():
        raise VideoError(_missing(path))
    if path.suffix.lower() in IMAGES:
        return Frames([read_image(path)], [0], [path.name])
    pictures, indices = sample_video(path, count)
    once = [i for i, index in enumerate(indices) if index not in indices[:i]]
    return Frames([pictures[i] for i in once], [indices[i] for i in once], [])


def find_images(folder: Path) -> list[Path]:
    """The images in a folder, by their suffix; hidden files are left out."""
    return [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGES and not entry.name.startswith(".") and entry.is_file()
    ]


def in_order(images: Sequence[Path]) -> list[Path]:
    """Sorted by name, in which numbers count by their value."""
    return sorted(images, key=lambda image: (_by_number(image), image.name))


def read_image(path: Path) -> Pixels:
    """An image as uint8 ``[H, W, 3]`` RGB, upright. Raises :class:`VideoError` when it is none, or damaged."""
    try:
        with opened_picture(path, VideoError) as image:
            return np.array(as_rgb(ImageOps.exif_transpose(image), VideoError, str(path)))
    except FileNotFoundError:
        raise VideoError(_missing(path)) from None


def _spread(total: int, count: int) -> list[int]:
    return uniform_indices(total, min(total, count))


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}. Check the path."
    hint = near_misses(path.name, sorted(entry.name for entry in folder.iterdir()))
    return f"{path} does not exist.{hint or ' Check the path.'}"


def _no_images(folder: Path) -> str:
    found = sorted(entry.name for entry in folder.iterdir())
    some = f"found {len(found)} others, such as {found[0]}" if found else "it is empty"
    return (
        f"{folder} has no images ({', '.join(IMAGES)}): {some}. Give a folder of images, or the path of a video file."
    )
