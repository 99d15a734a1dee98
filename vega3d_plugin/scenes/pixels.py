"""Pictures and depth maps on disk, read when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..contracts.errors import SceneError
from ..storage.arrays import read_array
from .files import is_there, missing
from .pixel_limits import LARGEST, as_rgb, opened_picture


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk as float32 ``[3, H, W]`` in [0, 1], as its pixels are stored.

    A note in the file that the camera was turned is ignored: intrinsics and poses are those of the stored pixels.
    """

    path: Path

    def __call__(self) -> Tensor:
        """Read it. Raises :class:`SceneError` when it is no picture, or damaged."""
        with _opened(self.path) as image:
            pixels = np.array(as_rgb(image, SceneError, str(self.path)))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class DepthFile:
    """A depth map on disk as float32 ``[H, W]`` metres, 0 where not measured.

    Attributes:
        path: a PNG or TIFF of 16 or 32 bits, ``.npy``, or ``.pfm``. NaN and infinity in floats are not measured.
        units: how many units of the file are one metre: 1000 for millimetres.
    """

    path: Path
    units: float

    def __call__(self) -> Tensor:
        """Read it. Raises :class:`SceneError` when it is no depth map, or damaged."""
        values = read_plane(self.path).astype(np.float32) / np.float32(self.units)
        values[~np.isfinite(values)] = 0
        return torch.from_numpy(values)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header.

    Raises:
        SceneError: not there, or no picture.
    """
    with _opened(path) as image:
        return image.height, image.width


def picture_turn(path: Path) -> int:
    """How a picture's file says that it is shown, as EXIF counts: 1 as it is stored, to 8.

    Raises:
        SceneError: not there, or no picture.
    """
    with _opened(path) as image:
        turn = image.getexif().get(274, 1)
        return turn if isinstance(turn, int) else 1


def read_plane(path: Path) -> NDArray[Any]:
    """``[H, W]`` numbers as the file holds them.

    Raises:
        SceneError: not there, damaged, or something else, such as a colour picture or one of 8 bits.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if not is_there(path):
            raise SceneError(missing(path))
        values = read_array(path, SceneError)
    elif suffix == ".pfm":
        values = _read_pfm(path)
    else:
        values = _read_image_plane(path)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or min(values.shape) < 1 or values.dtype.kind not in "uif":
        raise SceneError(f"{path}: a depth map is [height, width] numbers, found {values.dtype} {list(values.shape)}.")
    return values


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with opened_picture(path, SceneError) as image:
            yield image
    except FileNotFoundError:
        raise SceneError(missing(path)) from None


def _read_image_plane(path: Path) -> NDArray[Any]:
    with _opened(path) as image:
        if image.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
            raise SceneError(
                f"{path} is no depth map: depth is one channel of 16 or 32 bits, this picture has the mode "
                f"{image.mode} ({'8 bits' if image.mode in ('L', 'RGB', 'RGBA', 'P') else 'other'})."
            )
        return np.array(image)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > 8 * LARGEST + 4096:
            raise SceneError(f"{path} has {path.stat().st_size:,} bytes: too large for one depth map.")
        return path.read_bytes()
    except FileNotFoundError:
        raise SceneError(missing(path)) from None
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}.") from error


def _read_pfm(path: Path) -> NDArray[Any]:
    """Portable float map, one channel: three lines of header, then rows from the bottom to the top."""
    data = _bytes(path)
    header = re.match(rb"Pf\s+(\d{1,6})\s+(\d{1,6})\s+(-?\d+(?:\.\d+)?)\s", data)
    if header is None:
        raise SceneError(f"{path} is no portable float map of one channel: its header should begin with Pf.")
    width, height = int(header[1]), int(header[2])
    left = len(data) - header.end()
    if left != 4 * width * height:
        raise SceneError(f"{path}: its header tells {width}x{height} floats, it has {left} bytes of them.")
    order = "<f4" if float(header[3]) < 0 else ">f4"
    values = np.frombuffer(data, order, offset=header.end()).reshape(height, width)[::-1]
    return values.astype(np.float32)
