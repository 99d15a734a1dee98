"""COLMAP's sparse model, text and binary: cameras, images, points (``src/colmap/scene/reconstruction_io``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import SceneError
from ..files import brief, missing, numbers, read_text

#: Names by number, with the count of parameters (``src/colmap/sensor/models.h``).
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
)
_COUNTS = dict(MODELS)
_LARGEST = 2 * 2**30


@dataclass(frozen=True)
class Camera:
    """Attributes: ``model``: of :data:`MODELS`; ``size``: (height, width); ``parameters``: in COLMAP's order."""

    model: str
    size: tuple[int, int]
    parameters: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Image:
    """A registered picture: world-to-camera, and what it sees of the sparse points.

    Attributes:
        quaternion: (w, x, y, z).
        translation: in the model's unit.
        camera: number of its camera.
        name: of its file.
        pixels: float64 ``[N, 2]``; the centre of the top left pixel is (0.5, 0.5).
        points: int64 ``[N]``, the number of the point seen there, -1 for none.
    """

    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera: int
    name: str
    pixels: NDArray[np.float64]
    points: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Model:
    """Attributes: ``cameras`` by number; ``images``; ``points``: places by number, in the model's unit."""

    cameras: Mapping[int, Camera]
    images: tuple[Image, ...]
    points: Mapping[int, tuple[float, float, float]]


def read_model(folder: Path) -> Model:
    """Read ``cameras``, ``images`` and ``points3D``, each ``.bin`` or ``.txt``; the points may be missing.

    Raises:
        SceneError: a file is missing, truncated, or names a camera that is not there; with file and line or byte.
    """
    binary = (folder / "images.bin").is_file()
    suffix = ".bin" if binary else ".txt"
    files = {name: folder / f"{name}{suffix}" for name in ("cameras", "images", "points3D")}
    for name in ("cameras", "images"):
        if not files[name].is_file():
            raise SceneError(missing(files[name]))
    cameras = dict(_binary_cameras(files["cameras"]) if binary else _text_cameras(files["cameras"]))
    images = tuple(_binary_images(files["images"]) if binary else _text_images(files["images"]))
    points = {}
    if files["points3D"].is_file():
        points = dict(_binary_points(files["points3D"]) if binary else _text_points(files["points3D"]))
    if not images:
        raise SceneError(f"{files['images']} has no pictures.")
    for image in images:
        if image.camera not in cameras:
            raise SceneError(
                f"{files['images']}: {image.name} has the camera {image.camera}, which {files['cameras']} lacks."
            )
    return Model(cameras, images, points)


def _camera(model: str, width: float, height: float, parameters: tuple[float, ...], where: str) -> Camera:
    if model not in _COUNTS:
        raise SceneError(f"{where}: unknown camera model {brief(model)}. Known: {', '.join(_COUNTS)}.")
    if len(parameters) != _COUNTS[model]:
        raise SceneError(f"{where}: {model} has {_COUNTS[model]} parameters, found {len(parameters)}.")
    if not (1 <= width < 1e6 and 1 <= height < 1e6):
        raise SceneError(f"{where}: a picture of {width:g}x{height:g} pixels.")
    if not all(abs(value) < 1e9 for value in parameters):
        raise SceneError(f"{where}: NaN, infinity or huge numbers in its parameters {parameters}.")
    return Camera(model, (int(height), int(width)), parameters)


def _text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Lines without comments; empty ones count: a picture that sees no points has one."""
    for number, line in enumerate(read_text(file, _LARGEST).splitlines(), 1):
        if not line.startswith("#"):
            yield f"{file}, line {number}", line.strip()


def _text_cameras(file: Path) -> Iterator[tuple[int, Camera]]:
    for where, line in _text_lines(file):
        if not line:
            continue
        number, _, rest = line.partition(" ")
        model, _, values = rest.strip().partition(" ")
        width, height, *parameters = [*numbers(values, where), float("nan"), float("nan")]
        yield _whole(number, where), _camera(model, width, height, tuple(parameters[:-2]), where)


def _text_images(file: Path) -> Iterator[Image]:
    lines = _text_lines(file)
    for where, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        if len(words) != 10:
            raise SceneError(
                f"{where}: a picture has 10 entries (number, rotation, translation, camera, name): {brief(line)}."
            )
        values = numbers(" ".join(words[1:8]), where)
        there, seen = next(lines, (where, ""))
        found = numbers(seen, there)
        if len(found) % 3:
            raise SceneError(f"{there}: three numbers for each point that a picture sees, found {len(found)}.")
        table = np.array(found, np.float64).reshape(-1, 3)
        if not (np.abs(table) < 2**53).all():
            raise SceneError(f"{there}: NaN, infinity or huge numbers.")
        w, x, y, z, tx, ty, tz = values
        yield Image(
            (w, x, y, z), (tx, ty, tz), _whole(words[8], where), words[9], table[:, :2], table[:, 2].astype(np.int64)
        )


def _text_points(file: Path) -> Iterator[tuple[int, tuple[float, float, float]]]:
    for where, line in _text_lines(file):
        if not line:
            continue
        words = line.split(maxsplit=4)
        place = numbers(" ".join(words[1:4]), where)
        if len(place) != 3:
            raise SceneError(f"{where}: a point has a number and a place, found {brief(line)}.")
        yield _whole(words[0], where), (place[0], place[1], place[2])


def _whole(text: str, where: str) -> int:
    if not (text.lstrip("-").isdecimal() and len(text) < 20):
        raise SceneError(f"{where}: {brief(text)} is no whole number.")
    return int(text)


class _Bytes:
    """A binary file, read from its beginning to its end."""

    def __init__(self, file: Path) -> None:
        self.file, self.at = file, 0
        try:
            if file.stat().st_size > _LARGEST:
                raise SceneError(f"{file} has {file.stat().st_size:,} bytes, over {_LARGEST:,}.")
            self.data = file.read_bytes()
        except OSError as error:
            raise SceneError(f"{file} cannot be read: {error}.") from error

    def take(self, form: str) -> tuple[float, ...]:
        """Numbers of a :mod:`struct` format."""
        size = struct.calcsize(form)
        self._need(size)
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)

    def count(self, least: int) -> int:
        """A number of entries, each of at least so many bytes."""
        (count,) = self.take("<Q")
        if count * least > len(self.data) - self.at:
            raise SceneError(
                f"{self.file}, byte {self.at - 8}: {count:.0f} entries do not fit into its {len(self.data)} bytes."
            )
        return int(count)

    def name(self) -> str:
        """Text up to a zero byte."""
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise SceneError(f"{self.file}, byte {self.at}: a name without an end.")
        start, self.at = self.at, end + 1
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise SceneError(f"{self.file}, byte {start}: a name that is not UTF-8.") from None

    def table(self, count: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        """So many records."""
        self._need(count * dtype.itemsize)
        start, self.at = self.at, self.at + count * dtype.itemsize
        return np.frombuffer(self.data, dtype, count, start)

    def finish(self) -> None:
        """Nothing may be left."""
        if self.at != len(self.data):
            raise SceneError(f"{self.file}: {len(self.data) - self.at} bytes after its end, at byte {self.at}.")

    def _need(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise SceneError(f"{self.file} is cut short: {size} bytes are missing at byte {self.at}.")


def _binary_cameras(file: Path) -> Iterator[tuple[int, Camera]]:
    data = _Bytes(file)
    for _ in range(data.count(24)):
        where = f"{file}, byte {data.at}"
        number, model = (int(value) for value in data.take("<ii"))
        width, height = data.take("<QQ")
        if not 0 <= model < len(MODELS):
            raise SceneError(f"{where}: unknown camera model {model}; known are 0 to {len(MODELS) - 1}.")
        name, count = MODELS[model]
        yield number, _camera(name, width, height, data.take(f"<{count}d"), where)
    data.finish()


_SEEN = np.dtype([("pixel", "<f8", 2), ("point", "<i8")])


def _binary_images(file: Path) -> Iterator[Image]:
    data = _Bytes(file)
    for _ in range(data.count(73)):
        data.take("<i")
        w, x, y, z, tx, ty, tz = data.take("<7d")
        (camera,) = data.take("<i")
        name = data.name()
        seen = data.table(data.count(_SEEN.itemsize), _SEEN)
        yield Image((w, x, y, z), (tx, ty, tz), int(camera), name, seen["pixel"], seen["point"])
    data.finish()


def _binary_points(file: Path) -> Iterator[tuple[int, tuple[float, float, float]]]:
    data = _Bytes(file)
    for _ in range(data.count(51)):
        number, x, y, z = data.take("<Q3d")
        data.take("<3Bd")
        track = data.count(8)
        data.at += 8 * track
        yield int(number), (x, y, z)
    data.finish()
