"""A rectified stereo pair with disparity: two views of known geometry.

A folder of Middlebury 2014 (``im0.png``, ``im1.png``, ``calib.txt``, ``disp0.pfm`` and perhaps ``disp1.pfm``), or
``stereo:motorcycle``, the pair of that benchmark that scikit-image ships (``skimage.data.stereo_motorcycle``, whose
docstring has its calibration).
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...contracts.errors import SceneError, UnknownNameError
from ...storage.arrays import read_arrays
from ..files import FileContent, missing, numbers, read_text
from ..pixels import PictureFile, picture_size, read_plane
from ..scene import Scene, View

PAIRS = ("motorcycle",)


@dataclass(frozen=True)
class Calibration:
    """Of a rectified pair.

    Attributes:
        focal: pixels, of both cameras.
        left: principal point of the left one (x, y), pixels; the right one's y is the same.
        offset: how much larger the right one's x is.
        baseline: metres between them.
    """

    focal: float
    left: tuple[float, float]
    offset: float
    baseline: float

    def depth(self, disparity: NDArray[np.floating]) -> NDArray[np.float32]:
        """Metres, 0 where the disparity is no positive finite number."""
        known = np.isfinite(disparity) & (disparity + self.offset > 1e-3)
        apart = np.where(known, disparity + self.offset, 1)
        return np.where(known, self.focal * self.baseline / apart, 0).astype(np.float32)

    def intrinsics(self, right: bool) -> Tensor:
        """``[3, 3]``."""
        x = self.left[0] + (self.offset if right else 0)
        return torch.tensor([[self.focal, 0, x], [0, self.focal, self.left[1]], [0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class DisparityDepth:
    """Depth of one view of a pair.

    Attributes:
        path: disparity, ``.pfm`` or ``.npz`` with one array.
        calibration: of the pair.
        moved: whether the disparity is the left view's and the depth that of the right one: each pixel is moved to
            where the right view sees it, and the nearest that arrives there counts.
    """

    path: Path
    calibration: Calibration
    moved: bool = False

    def __call__(self) -> Tensor:
        """``[H, W]`` metres. Raises :class:`SceneError` when the file is damaged."""
        disparity = _disparity(self.path)
        if self.moved:
            disparity = _seen_from_the_right(disparity)
        return torch.from_numpy(self.calibration.depth(disparity))


def matches(path: Path) -> bool:
    """Whether a folder has a pair and its calibration."""
    return (path / "calib.txt").is_file() and (path / "im0.png").is_file()


def read(path: Path) -> Scene:
    """Read a pair in Middlebury's layout.

    Raises:
        SceneError: a missing or damaged file.
    """
    calibration = _calibration(path / "calib.txt")
    left, right = path / "disp0.pfm", path / "disp1.pfm"
    if not left.is_file():
        raise SceneError(missing(left))
    return _pair(path.resolve().name, str(path), (path / "im0.png", path / "im1.png"), calibration, left, right)


def read_shipped(name: str) -> Scene:
    """A pair that a package ships.

    Raises:
        UnknownNameError: another name than those of :data:`PAIRS`.
        SceneError: scikit-image is not installed.
    """
    if name not in PAIRS:
        raise UnknownNameError("stereo pair", name, PAIRS)
    # Only its files are needed: importing it would bring SciPy.
    found = importlib.util.find_spec("skimage")
    folder = (
        None if found is None or not found.submodule_search_locations else Path(found.submodule_search_locations[0])
    )
    if folder is None or not (folder / "data" / "motorcycle_disp.npz").is_file():
        raise SceneError(
            f"The pair {name!r} comes with scikit-image, which is not installed. Install it: pip install scikit-image"
        )
    data = folder / "data"
    # From the docstring of skimage.data.stereo_motorcycle.
    calibration = Calibration(994.978, (311.193, 254.877), 31.086, 0.193001)
    pictures = data / "motorcycle_left.png", data / "motorcycle_right.png"
    return _pair(name, f"stereo:{name}", pictures, calibration, data / "motorcycle_disp.npz", None)


def _pair(
    name: str, source: str, pictures: tuple[Path, Path], calibration: Calibration, left: Path, right: Path | None
) -> Scene:
    own = right is not None and right.is_file()
    depths = (
        DisparityDepth(left, calibration),
        DisparityDepth(right, calibration) if own and right is not None else DisparityDepth(left, calibration, True),
    )
    views = []
    for i, (picture, depth) in enumerate(zip(pictures, depths, strict=True)):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = i * calibration.baseline
        views.append(
            View(
                ("left", "right")[i],
                picture_size(picture),
                PictureFile(picture),
                depth,
                calibration.intrinsics(bool(i)),
                pose=pose,
                content=FileContent((picture, depth.path), f"{calibration} {depth.moved}"),
            )
        )
    if views[0].size != views[1].size:
        raise SceneError(f"{source}: the pictures of a pair have one size, found {views[0].size} and {views[1].size}.")
    return Scene(name, source, tuple(views))


def _calibration(file: Path) -> Calibration:
    text = read_text(file, 2**16)
    values: dict[str, str] = dict(re.findall(r"^(\w+)\s*=\s*(.+?)\s*$", text, re.MULTILINE))
    for key in ("cam0", "doffs", "baseline"):
        if key not in values:
            raise SceneError(f"{file}: the line {key}=... is missing.")
    camera = numbers(values["cam0"].strip("[]").replace(";", " "), f"{file}, cam0")
    single = [numbers(values[key], f"{file}, {key}") for key in ("doffs", "baseline")]
    if len(camera) != 9 or any(len(each) != 1 for each in single):
        raise SceneError(f"{file}: cam0 has 9 numbers, doffs and baseline one each.")
    (offset,), (millimetres,) = single
    if not (0 < camera[0] < 1e6 and 0 < millimetres < 1e6 and abs(offset) < 1e6):
        raise SceneError(f"{file}: focal length {camera[0]:g}, doffs {offset:g}, baseline {millimetres:g} cannot be.")
    return Calibration(camera[0], (camera[2], camera[5]), offset, millimetres / 1000)


def _disparity(path: Path) -> NDArray[np.float64]:
    if path.suffix != ".npz":
        return read_plane(path).astype(np.float64)
    arrays = list(read_arrays(path, SceneError).values())
    if len(arrays) != 1 or arrays[0].ndim != 2 or arrays[0].dtype.kind not in "uif":
        found = ", ".join(f"{each.dtype} {list(each.shape)}" for each in arrays) or "nothing"
        raise SceneError(f"{path}: disparity is one array [height, width] of numbers, found {found}.")
    return arrays[0].astype(np.float64)


def _seen_from_the_right(disparity: NDArray[np.float64]) -> NDArray[np.float64]:
    """The left view's disparity at the right view's pixels; NaN where none arrives."""
    height, width = disparity.shape
    rows, columns = np.nonzero(np.isfinite(disparity) & (disparity > 0) & (disparity < width))
    values = disparity[rows, columns]
    arrives = np.round(columns - values).astype(np.int64)
    inside = arrives >= 0
    moved = np.full((height, width), -np.inf)
    # The larger disparity is nearer, and hides the other.
    np.maximum.at(moved, (rows[inside], arrives[inside]), values[inside])
    return np.where(np.isfinite(moved), moved, np.nan)
