"""``transforms.json`` of nerfstudio, instant-ngp and ScanNet++: poses camera-to-world, with OpenGL's axes.

Keys as nerfstudio's data parser and ScanNet++'s documentation name them: ``camera_model``, ``fl_x``, ``fl_y``, ``cx``,
``cy``, ``w``, ``h``, ``k1`` ... or ``camera_angle_x``; ``frames`` of ``file_path``, ``depth_file_path``,
``transform_matrix`` and their own intrinsics.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...cli.frames import in_order
from ...errors import SceneError
from ..files import as_matrix, as_number, below, brief, is_there, missing, read_json
from ..pixels import picture_size
from ..scene import Scene, View
from .lens import BROWN, for_picture, pinhole
from .posing import MILLIMETRES, ViewsLeftOutWarning, check_depth_of_all, check_units, file_view

NAMES = (
    "transforms.json",
    "nerfstudio/transforms_undistorted.json",
    "nerfstudio/transforms.json",
    "dslr/nerfstudio/transforms_undistorted.json",
    "dslr/nerfstudio/transforms.json",
    "iphone/nerfstudio/transforms.json",
    "transforms_train.json",
)
#: Where ScanNet++ keeps the pictures that its files name without a folder.
BESIDE = ("resized_undistorted_images", "resized_images", "rgb", "images")
EXACT = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
_TO_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def matches(path: Path) -> bool:
    """Whether a folder has such a file, or it is one."""
    return _find(path) is not None


def read(path: Path, *, depth_units: float | None = None, ignore_distortion: bool = False) -> Scene:
    """Read one scene.

    Args:
        path: the folder, or the file.
        depth_units: units of a depth map in one metre. By default what the file says (``depth_unit_scale_factor`` or
            ``integer_depth_scale``, both metres of one unit), else 1000 for pictures and 1 for arrays of floats.
        ignore_distortion: see :func:`.lens.pinhole`.

    Raises:
        SceneError: a key is missing or wrong, pictures are missing, or the camera model is no pinhole's.
    """
    file = _find(path)
    if file is None:
        raise SceneError(missing(path / NAMES[0]))
    meta = read_json(file)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{file}, frames: expected a list of frames, found {brief(frames)}.")
    _check_model(meta, file)
    scale = next((meta[key] for key in ("depth_unit_scale_factor", "integer_depth_scale") if key in meta), None)
    if depth_units is None and scale is not None:
        depth_units = 1 / max(as_number(scale, f"{file}, depth scale"), 1e-12)
    frames = _usable(frames, file)
    views = [_view(file, meta, frame, number, depth_units, ignore_distortion) for number, frame in frames]
    check_depth_of_all(views, str(file))
    ranks = {name: rank for rank, name in enumerate(in_order([Path(view.name) for view in views]))}
    views.sort(key=lambda view: ranks[Path(view.name)])
    folder = next(
        part for part in (file.parent, *file.resolve().parents) if part.name not in ("", "nerfstudio", "dslr")
    )
    return Scene(folder.resolve().name, str(file), tuple(views))


def _find(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".json" and path.name.startswith("transforms") else None
    return next((path / name for name in NAMES if (path / name).is_file()), None)


def _check_model(meta: Mapping[str, Any], file: Path) -> None:
    model = meta.get("camera_model", "OPENCV")
    if model not in EXACT:
        raise SceneError(
            f"{file}, camera_model: {brief(model)} is no pinhole camera. Undistort the pictures first; ScanNet++ has "
            "a script for it that writes transforms_undistorted.json. Known: " + ", ".join(EXACT) + "."
        )


def _usable(frames: list[Any], file: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Frames with their numbers, without those that ScanNet++ marks as blurred."""
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise SceneError(f"{file}, frames[{number}]: expected an object, found {brief(frame)}.")
    good = [(number, frame) for number, frame in enumerate(frames) if frame.get("is_bad") is not True]
    if not good:
        raise SceneError(f"{file}: all {len(frames)} frames are marked `is_bad`.")
    if len(good) < len(frames):
        warnings.warn(
            f"{file}: {len(frames) - len(good)} of {len(frames)} frames are left out, they are marked `is_bad`.",
            ViewsLeftOutWarning,
            stacklevel=4,
        )
    return good


def _view(
    file: Path,
    meta: Mapping[str, Any],
    frame: Mapping[str, Any],
    number: int,
    units: float | None,
    ignore: bool,
) -> View:
    where = f"{file}, frames[{number}]"
    picture = _picture(file, frame.get("file_path"), where)
    name = str(frame["file_path"]).removeprefix("./")
    depth = frame.get("depth_file_path")
    depth_file = None if depth is None else below(file.parent, depth, f"{where}, depth_file_path")
    if depth_file is not None and not depth_file.is_file():
        raise SceneError(f"{where}, depth_file_path: {missing(depth_file)}")
    matrix = as_matrix(frame.get("transform_matrix"), f"{where}, transform_matrix", ((4, 4), (3, 4)))
    if len(matrix) == 3:
        matrix = torch.cat([matrix, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])
    size = picture_size(picture)
    floats = depth_file is not None and depth_file.suffix.lower() in (".npy", ".pfm")
    return file_view(
        name,
        picture,
        where,
        depth=depth_file,
        depth_units=check_units(units, 1.0 if floats else MILLIMETRES),
        intrinsics=_intrinsics({**meta, **frame}, size, where, ignore),
        pose=matrix @ _TO_OPENCV,
    )


def _picture(file: Path, name: Any, where: str) -> Path:
    path = below(file.parent, name, f"{where}, file_path")
    tried: list[Path] = [path, *(file.parent.parent / folder / name for folder in BESIDE)]
    if not path.suffix:  # the synthetic scenes of NeRF leave it out
        tried.append(path.with_suffix(".png"))
    found = next((each for each in tried if is_there(each)), None)
    if found is None:
        raise SceneError(f"{where}, file_path: {missing(path)}")
    return found


def _intrinsics(keys: Mapping[str, Any], size: tuple[int, int], where: str, ignore: bool) -> torch.Tensor | None:
    """Of a frame, whose own keys come before those of the file; None where neither has any."""

    def number(key: str, default: float) -> float:
        return default if keys.get(key) is None else as_number(keys[key], f"{where}, {key}")

    height, width = number("h", size[0]), number("w", size[1])
    if not (1 <= height <= 1e6 and 1 <= width <= 1e6):
        raise SceneError(f"{where}: `w` and `h` are {width:g} and {height:g}, sizes in pixels are expected.")
    focal = number("fl_x", 0.0)
    if not focal and keys.get("camera_angle_x") is not None:
        angle = number("camera_angle_x", 0.0)
        if not 0 < angle < math.pi:
            raise SceneError(f"{where}, camera_angle_x: {angle:g} is no angle of view in radians.")
        focal = width / 2 / math.tan(angle / 2)
    if not focal:
        return None
    other = number("fl_y", 0.0)
    if not other and keys.get("camera_angle_y") is not None and 0 < number("camera_angle_y", 0.0) < math.pi:
        other = height / 2 / math.tan(number("camera_angle_y", 0.0) / 2)
    middle = number("cx", width / 2), number("cy", height / 2)
    told = int(height), int(width)
    bends = {name: number(name, 0.0) for name in BROWN if keys.get(name)}
    return for_picture(pinhole((focal, other or focal), middle, bends, told, where, ignore), told, size, where)
