"""A sequence of the TUM RGB-D benchmark (and of those that copy its layout, such as ETH3D's).

``rgb.txt`` and ``depth.txt``: a time and a file in each line; ``groundtruth.txt``: time, translation, quaternion
(x, y, z, w), camera-to-world. Depth is uint16, 5000 for one metre. Times are matched as the benchmark's
``associate.py`` does, nearest first, at most 0.02 s apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SceneError, SettingsError
from ..cameras import check_pose
from ..files import below, lines_of, missing, numbers
from ..scene import Scene
from .lens import DistortionWarning
from .posing import ViewsLeftOutWarning, check_units, file_view, rigid, rotation

UNITS = 5000.0
APART = 0.02  # seconds
#: (fx, fy, cx, cy) of the benchmark's three cameras, from its page on file formats.
CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}


def matches(path: Path) -> bool:
    """Whether a folder has the two lists."""
    return (path / "rgb.txt").is_file() and (path / "depth.txt").is_file()


def read(path: Path, *, intrinsics: str | None = None, depth_units: float | None = None) -> Scene:
    """Read one sequence.

    Args:
        path: the folder.
        intrinsics: ``fx,fy,cx,cy`` in pixels. By default what ``calibration.txt`` says, else those of the benchmark's
            camera whose name (``freiburg1`` ...) is in the folder's.
        depth_units: units of a depth map in one metre; 5000 by default.

    Raises:
        SceneError: a damaged line, a missing file, or no two times that match.

    Warns:
        ViewsLeftOutWarning: pictures without depth or pose at their time.
        DistortionWarning: the first two cameras of the benchmark bend lines by up to some pixels.
    """
    units = check_units(depth_units, UNITS)
    times, pictures = _list(path / "rgb.txt")
    depth_times, maps = _list(path / "depth.txt")
    pose_times, poses = _poses(path / "groundtruth.txt")
    depth_at = _associate(times, depth_times)
    pose_at = _associate(times, pose_times) if len(pose_times) else {}
    kept = [i for i in range(len(times)) if i in depth_at and (i in pose_at or not len(pose_times))]
    if not kept:
        raise SceneError(
            f"{path}: none of {len(times)} pictures has depth and a pose within {APART} s of its time. "
            "Check that the three files have one clock."
        )
    if len(kept) < len(times):
        warnings.warn(
            f"{path}: {len(times) - len(kept)} of {len(times)} pictures are left out, they have no depth or no pose "
            f"within {APART} s.",
            ViewsLeftOutWarning,
            stacklevel=3,
        )
    matrix = _intrinsics(path, intrinsics)
    views = tuple(
        file_view(
            pictures[i].name,
            pictures[i],
            depth=maps[depth_at[i]],
            depth_units=units,
            intrinsics=matrix,
            pose=poses[pose_at[i]] if pose_at else None,
        )
        for i in kept
    )
    return Scene(path.resolve().name, str(path), views)


def _list(file: Path) -> tuple[NDArray[np.float64], list[Path]]:
    times, paths = [], []
    for where, line in lines_of(file):
        time, _, name = line.partition(" ")
        times.append(_time(time, where))
        paths.append(below(file.parent, name.strip(), where))
        if not paths[-1].is_file():
            raise SceneError(f"{where}: {missing(paths[-1])}")
    if not times:
        raise SceneError(f"{file} names no files.")
    order = np.argsort(times, kind="stable")
    return np.array(times)[order], [paths[i] for i in order]


def _poses(file: Path) -> tuple[NDArray[np.float64], list[Tensor]]:
    if not file.is_file():
        return np.empty(0), []
    times, poses = [], []
    for where, line in lines_of(file):
        found = numbers(line, where)
        if len(found) != 8:
            raise SceneError(f"{where}: a pose has 8 numbers (time, translation, quaternion), found {len(found)}.")
        time, x, y, z, qx, qy, qz, qw = found
        times.append(_time(str(time), where))
        poses.append(check_pose(rigid(rotation((qw, qx, qy, qz), where), (x, y, z)), where))
    order = np.argsort(times, kind="stable")
    return np.array(times)[order], [poses[i] for i in order]


def _time(text: str, where: str) -> float:
    (time,) = numbers(text, where) or (float("nan"),)
    if not abs(time) < 1e12:
        raise SceneError(f"{where}: {text[:40]!r} is no time in seconds.")
    return time


def _associate(times: NDArray[np.float64], others: NDArray[np.float64]) -> dict[int, int]:
    """For each time, the place of the other that it is matched with; each is used once, nearest pairs first."""
    pairs = []
    right = np.searchsorted(others, times)
    for i, place in enumerate(right):
        for j in (place - 1, place):
            if 0 <= j < len(others) and abs(others[j] - times[i]) < APART:
                pairs.append((abs(float(others[j] - times[i])), i, int(j)))
    matched: dict[int, int] = {}
    used: set[int] = set()
    for _, i, j in sorted(pairs):
        if i not in matched and j not in used:
            matched[i] = j
            used.add(j)
    return matched


def _intrinsics(path: Path, given: str | None) -> Tensor:
    file = path / "calibration.txt"
    if given is not None:
        found: Sequence[float] = numbers(given, "intrinsics")
        if len(found) != 4:
            raise SettingsError(f"intrinsics are fx,fy,cx,cy: 4 numbers, found {len(found)}.")
    elif file.is_file():
        where, line = next(lines_of(file), (str(file), ""))
        found = numbers(line, where)
        if len(found) < 4 or any(found[4:]):
            raise SceneError(
                f"{where}: expected fx, fy, cx, cy of pictures without distortion, found {len(found)} numbers."
            )
    else:
        name = path.resolve().name
        camera = next((key for key in CAMERAS if key in name), None)
        if camera is None:
            raise SceneError(
                f"{path}: nothing says what its camera is. Pass `intrinsics` (fx,fy,cx,cy), or write these four "
                f"numbers into {file}. The benchmark's own cameras are known by the folder's name: "
                f"{', '.join(CAMERAS)}."
            )
        if camera != "freiburg3":
            warnings.warn(
                f"{path}: pictures of {camera} bend lines by up to some pixels at the corners, which is ignored.",
                DistortionWarning,
                stacklevel=4,
            )
        found = CAMERAS[camera]
    fx, fy, cx, cy = found[:4]
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
