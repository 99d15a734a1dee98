"""A scene of EmbodiedScan's info files: ``embodiedscan_infos_train.pkl#scannet/scene0000_00``.

Keys as ``llava/video_utils.py`` and EmbodiedScan read them: ``data_list`` of ``sample_idx``, ``axis_align_matrix``,
``cam2img``, ``depth_cam2img``, ``images`` (``img_path``, ``depth_path``, ``cam2global``), ``instances`` (``bbox_3d``,
``bbox_label_3d``); ``metainfo.categories``. The pictures are those of the list, not those of the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...contracts.errors import SceneError
from ..files import as_matrix, as_number, below, brief, is_there, missing
from ..restricted_pickle import StoredArray
from ..scene import Scene, SceneObject, View
from .info_files import SUFFIXES, find_scene, images_of, pictures_root, read_info
from .posing import MILLIMETRES, check_depth_of_all, check_units, file_view

# Matterport3D's depth has a quarter of a millimetre for a unit (EmbodiedScan's `depth_shift`).
UNITS = {"matterport3d": 4000.0}
_MATRICES = ((4, 4), (3, 3), (3, 4))


def matches(path: Path) -> bool:
    """Whether it is a pickle."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read(
    path: Path, *, scene: str | None = None, root: str | Path | None = None, depth_units: float | None = None
) -> Scene:
    """Read one scene.

    Args:
        path: the info file.
        scene: its ``sample_idx``; ``scannet/`` may be left out. Not needed where the file has only one.
        root: the folder that ``img_path`` starts from; by default the first folder above the file that has it.
        depth_units: units of a depth map in one metre; by default what the data set has.

    Raises:
        SceneError: no such scene, missing pictures, or a file that names anything but containers and arrays.
    """
    scenes, categories = read_info(path)
    name = find_scene(path, scenes, scene)
    entry, where = scenes[name], f"{path}, {name}"
    images = images_of(entry, where)
    folder = pictures_root(path, images[0], where) if root is None else Path(root).expanduser()
    units = check_units(depth_units, UNITS.get(name.partition("/")[0], MILLIMETRES))
    views = tuple(_view(folder, entry, image, f"{where}, image {number}", units) for number, image in enumerate(images))
    check_depth_of_all(views, where)
    alignment = entry.get("axis_align_matrix")
    return Scene(
        name.rpartition("/")[2],
        f"{path}#{name}",
        views,
        None if alignment is None else _matrix(alignment, f"{where}, axis_align_matrix"),
        _objects(entry, categories, where),
    )


def _view(folder: Path, entry: Mapping[str, Any], image: Any, where: str, units: float) -> View:
    if not isinstance(image, dict):
        raise SceneError(f"{where}: expected a dict, found {brief(image)}.")
    picture = below(folder, image.get("img_path"), f"{where}, img_path")
    named = image.get("depth_path")
    depth = picture.with_suffix(".png") if named is None else below(folder, named, f"{where}, depth_path")
    if named is not None and not depth.is_file():
        raise SceneError(f"{where}: {missing(depth)}")
    intrinsics = {key: image.get(key, entry.get(key)) for key in ("cam2img", "depth_cam2img")}
    colour, own = (
        None if value is None else _matrix(value, f"{where}, {key}", _MATRICES)[:3, :3]
        for key, value in intrinsics.items()
    )
    if image.get("cam2global") is None:
        raise SceneError(f"{where}: `cam2global` is missing.")
    return file_view(
        picture.name,
        picture,
        where,
        depth=depth if is_there(depth) and depth != picture else None,
        depth_units=units,
        intrinsics=colour,
        depth_intrinsics=own,
        pose=_matrix(image["cam2global"], f"{where}, cam2global"),
    )


def _matrix(value: Any, where: str, shapes: tuple[tuple[int, int], ...] = ((4, 4),)) -> Tensor:
    if isinstance(value, StoredArray):
        value = value.unpack(where)
        # An array of another shape may be as large as the file: only a small one becomes lists.
        value = value.tolist() if value.size <= 16 else None
    if isinstance(value, list):
        value = [row.unpack(where).tolist() if isinstance(row, StoredArray) else row for row in value[:5]]
    return as_matrix(value, where, shapes)


def _objects(entry: Mapping[str, Any], categories: Mapping[int, str], where: str) -> tuple[SceneObject, ...]:
    listed = entry.get("instances") or []
    if not isinstance(listed, list):
        raise SceneError(f"{where}: `instances` must be a list, found {brief(listed)}.")
    return tuple(_object(item, categories, f"{where}, instance {i}") for i, item in enumerate(listed))


def _object(item: Any, categories: Mapping[int, str], where: str) -> SceneObject:
    box = item.get("bbox_3d") if isinstance(item, dict) else None
    if isinstance(box, StoredArray):
        unpacked = box.unpack(where)
        box = unpacked.tolist() if unpacked.size <= 9 else None
    if not isinstance(box, list) or len(box) not in (6, 7, 9):
        raise SceneError(f"{where}: `bbox_3d` has 9 numbers (centre, size, angles), found {brief(box)}.")
    x, y, z, dx, dy, dz, *angles = (as_number(value, f"{where}, bbox_3d") for value in box)
    a, b, c = (*angles, 0.0, 0.0, 0.0)[:3]
    label = item.get("bbox_label_3d")
    name = categories.get(label, str(label)) if isinstance(label, int) else "unknown"
    return SceneObject(name, (x, y, z), (dx, dy, dz), (a, b, c) if any(angles) else None)
