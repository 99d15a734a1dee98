"""A scene of EmbodiedScan's info files: ``embodiedscan_infos_train.pkl#scannet/scene0000_00``.

Keys as ``llava/video_utils.py`` and EmbodiedScan read them: ``data_list`` of ``sample_idx``, ``axis_align_matrix``,
``cam2img``, ``depth_cam2img``, ``images`` (``img_path``, ``depth_path``, ``cam2global``), ``instances`` (``bbox_3d``,
``bbox_label_3d``); ``metainfo.categories``. The pictures are those of the list, not those of the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import SceneError, near_misses
from ..files import as_matrix, as_number, below, brief, is_there, missing
from ..restricted_pickle import StoredArray, read_pickle
from ..scene import Scene, SceneObject, View
from .posing import MILLIMETRES, check_depth_of_all, check_units, file_view

# Matterport3D's depth has a quarter of a millimetre for a unit (EmbodiedScan's `depth_shift`).
UNITS = {"matterport3d": 4000.0}
_MATRICES = ((4, 4), (3, 3), (3, 4))


def matches(path: Path) -> bool:
    """Whether it is a pickle."""
    return path.suffix.lower() in (".pkl", ".pickle") and path.is_file()


def scene_names(path: Path) -> list[str]:
    """Names of the scenes in an info file, such as ``scannet/scene0000_00``, in its order."""
    return list(_scenes(path)[0])


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
    scenes, categories = _scenes(path)
    name = _name(path, scenes, scene)
    entry, where = scenes[name], f"{path}, {name}"
    images = entry.get("images")
    if not isinstance(images, list) or not images:
        raise SceneError(f"{where}: `images` must be a list, found {brief(images)}.")
    folder = _root(path, images[0], where) if root is None else Path(root).expanduser()
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


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> tuple[dict[str, Any], dict[int, str]]:
    payload = read_pickle(path)
    listed = payload.get("data_list") if isinstance(payload, dict) else None
    if not isinstance(listed, list):
        raise SceneError(f"{path} is no info file of EmbodiedScan: it has no list `data_list`.")
    scenes = {}
    for number, entry in enumerate(listed):
        name = entry.get("sample_idx") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in scenes:
            raise SceneError(
                f"{path}, data_list[{number}]: `sample_idx` is {brief(name)}, a name of its own is expected."
            )
        scenes[name] = entry
    info = payload.get("metainfo")
    categories = info.get("categories") if isinstance(info, dict) else None
    named = categories.items() if isinstance(categories, dict) else []
    return scenes, {value: str(name) for name, value in named if isinstance(value, int)}


def _scenes(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    try:
        state = path.stat()
    except OSError:
        raise SceneError(missing(path)) from None
    return _read(path, state.st_mtime_ns, state.st_size)


def _name(path: Path, scenes: Mapping[str, Any], wanted: str | None) -> str:
    some = f"It has {len(scenes)}: {', '.join(list(scenes)[:3])}{', ...' if len(scenes) > 3 else ''}."
    if wanted is None:
        if len(scenes) == 1:
            return next(iter(scenes))
        raise SceneError(f"{path} holds many scenes. Name one: {path.name}#NAME. {some}")
    for name in (wanted, f"scannet/{wanted}"):
        if name in scenes:
            return name
    raise SceneError(f"{path} has no scene {wanted!r}.{near_misses(wanted, scenes)} {some}")


def _root(path: Path, image: Any, where: str) -> Path:
    """The first folder above the info file that holds the first picture."""
    name = image.get("img_path") if isinstance(image, dict) else None
    if not isinstance(name, str):
        raise SceneError(f"{where}, image 0: `img_path` is {brief(name)}, the name of a file is expected.")
    above = path.resolve().parents
    for folder in (*above[:3], *(each / "data" for each in above[:3])):
        if is_there(folder / name):
            return folder
    raise SceneError(
        f"{where}: its first picture {name} lies in none of the folders above {path.name}. "
        "Say with `root` which folder it starts from."
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
