"""A scene of ScanNet as exported: numbered pictures, depth maps and poses in one folder or in four.

``posed_images/<scene>`` (``generate_image_scannet.py`` of MMDetection3D): ``00000.jpg``, ``00000.png`` (depth, uint16
millimetres), ``00000.txt`` (camera-to-world), ``intrinsic.txt`` and ``depth_intrinsic.txt`` (4x4).
``color/ depth/ pose/ intrinsic/`` (ScanNet's own ``SensReader``): ``0.jpg``, ``0.png``, ``0.txt``,
``intrinsic_color.txt``, ``intrinsic_depth.txt``.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SceneError
from ..cameras import rescaled_intrinsics
from ..files import as_number, as_triple, brief, numbers, read_json, read_matrix, read_text
from ..pixels import picture_size
from ..scene import Scene, SceneObject
from .posing import MILLIMETRES, ViewsLeftOutWarning, check_counts, check_units, file_view

PICTURES = (".jpg", ".jpeg")
#: Written by :func:`~vega3d_plugin.scenes.export.export_folder`; the public export has neither.
ALIGNMENT, OBJECTS = "axis_align_matrix.txt", "objects.json"


@dataclass
class _Files:
    pictures: dict[str, Path]
    depth: dict[str, Path] = field(default_factory=dict)
    poses: dict[str, Path] = field(default_factory=dict)
    intrinsic: Path | None = None
    depth_intrinsic: Path | None = None


def matches(path: Path) -> bool:
    """Whether a folder looks like such a scene."""
    if not path.is_dir():
        return False
    if (path / "color").is_dir() and ((path / "pose").is_dir() or (path / "depth").is_dir()):
        return True
    if (path / "intrinsic.txt").is_file() or (path / "depth_intrinsic.txt").is_file():
        return True
    first = next((entry for entry in sorted(path.iterdir()) if _is_picture(entry)), None)
    return first is not None and first.with_suffix(".txt").is_file()


def read(path: Path, *, depth_units: float | None = None) -> Scene:
    """Read one scene.

    Args:
        path: the folder.
        depth_units: units of a depth map in one metre; 1000 by default.

    Raises:
        SceneError: no pictures, other counts of depth maps or poses than of pictures, or a damaged file.

    Warns:
        ViewsLeftOutWarning: poses of minus infinity, ScanNet's sign for a lost camera; these views are left out.
    """
    units = check_units(depth_units, MILLIMETRES)
    files = _find(path)
    check_counts(path, list(files.pictures), {"depth maps": list(files.depth), "poses": list(files.poses)})
    intrinsics, depth_intrinsics = _intrinsics(path, files)
    poses, lost = _poses(files)
    names = [name for name in files.pictures if name not in lost]
    if not names:
        raise SceneError(f"{path}: the camera was lost in all {len(lost)} views (poses of minus infinity).")
    if lost:
        warnings.warn(
            f"{path}: {len(lost)} of {len(files.pictures)} views are left out: their poses are minus infinity, "
            f"ScanNet's sign that the camera was lost. The first is {files.poses[lost[0]].name}.",
            ViewsLeftOutWarning,
            stacklevel=3,
        )
    views = tuple(
        file_view(
            files.pictures[name].name,
            files.pictures[name],
            depth=files.depth.get(name),
            depth_units=units,
            intrinsics=intrinsics,
            depth_intrinsics=depth_intrinsics,
            pose=poses.get(name),
        )
        for name in names
    )
    return Scene(path.resolve().name, str(path), views, find_alignment(path), _objects(path / OBJECTS))


def find_alignment(path: Path) -> Tensor | None:
    """World to axis-aligned world, where the scene's folder or ScanNet's own ``<scene>.txt`` has it.

    Raises:
        SceneError: the file is damaged.
    """
    if (path / ALIGNMENT).is_file():
        return read_matrix(path / ALIGNMENT)
    name = path.resolve().name
    for meta in (path / f"{name}.txt", path.resolve().parents[1] / "scans" / name / f"{name}.txt"):
        if meta.is_file() and (line := re.search(r"^\s*axisAlignment\s*=(.*)$", read_text(meta, 2**20), re.MULTILINE)):
            found = numbers(line[1], f"{meta}, axisAlignment")
            if len(found) != 16:
                raise SceneError(f"{meta}, axisAlignment: expected 16 numbers, found {len(found)}.")
            values = [as_number(number, f"{meta}, axisAlignment") for number in found]
            return torch.tensor(values, dtype=torch.float64).reshape(4, 4)
    return None


def _find(path: Path) -> _Files:
    apart = (path / "color").is_dir()
    folders = [path / name for name in ("color", "depth", "pose")] if apart else [path] * 3
    pictures = {entry.stem: entry for entry in _numbered(folders[0]) if entry.suffix.lower() in PICTURES}
    if not pictures:
        raise SceneError(f"{folders[0]} has no numbered pictures ({', '.join(PICTURES)}).")
    intrinsic, depth_intrinsic = (
        (path / "intrinsic" / "intrinsic_color.txt", path / "intrinsic" / "intrinsic_depth.txt")
        if apart
        else (path / "intrinsic.txt", path / "depth_intrinsic.txt")
    )
    return _Files(
        pictures,
        {entry.stem: entry for entry in _numbered(folders[1]) if entry.suffix.lower() == ".png"},
        {entry.stem: entry for entry in _numbered(folders[2]) if entry.suffix.lower() == ".txt"},
        intrinsic if intrinsic.is_file() else None,
        depth_intrinsic if depth_intrinsic.is_file() else None,
    )


def _numbered(folder: Path) -> list[Path]:
    """Files with a number for a name, by the number."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if re.fullmatch(r"\d{1,18}", entry.stem) and entry.is_file()]
    return sorted(found, key=lambda entry: (int(entry.stem), entry.name))


def _is_picture(entry: Path) -> bool:
    return entry.suffix.lower() in PICTURES and entry.stem.isdecimal()


def _intrinsics(path: Path, files: _Files) -> tuple[Tensor | None, Tensor | None]:
    """The picture's and the depth map's; one stands for the other at its own size."""
    colour = None if files.intrinsic is None else read_matrix(files.intrinsic)[:3, :3]
    depth = None if files.depth_intrinsic is None else read_matrix(files.depth_intrinsic)[:3, :3]
    if colour is None and depth is not None and files.depth:
        name = next(iter(files.depth))
        sizes = picture_size(files.depth[name]), picture_size(files.pictures[name])
        colour = rescaled_intrinsics(depth, *sizes)
    if colour is None and (files.depth or files.poses):
        raise SceneError(
            f"{path} has depth or poses, but neither intrinsic.txt nor depth_intrinsic.txt: nothing says how its "
            "pixels look into the world. Copy these files from the export."
        )
    return colour, depth


def _poses(files: _Files) -> tuple[dict[str, Tensor], list[str]]:
    """Poses by name, and the names of those that are wholly minus infinity."""
    poses, lost = {}, []
    for name, path in files.poses.items():
        pose = read_matrix(path)
        if bool(torch.isneginf(pose[:3]).all()):
            lost.append(name)
        elif not bool(torch.isfinite(pose).all()):
            raise SceneError(f"{path}: NaN or infinity in a pose: {pose.tolist()}.")
        else:
            poses[name] = pose
    return poses, lost


def _objects(file: Path) -> tuple[SceneObject, ...]:
    if not file.is_file():
        return ()
    found = []
    for number, entry in enumerate(read_json(file, list)):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise SceneError(f"{where}: expected an object with a name, found {brief(entry)}.")
        centre, size = (as_triple(entry.get(key), f"{where}, {key}") for key in ("centre", "size"))
        angles = entry.get("angles")
        turned = None if angles is None else as_triple(angles, f"{where}, angles")
        found.append(SceneObject(entry["name"], centre, size, turned))
    return tuple(found)
