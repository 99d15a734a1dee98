"""EmbodiedScan's info files without their geometry: which scenes they hold, and where those pictures lie.

Imports no torch, so that rows of data can be checked against a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...contracts.errors import SceneError, near_misses
from ..files import brief, is_there, missing
from ..restricted_pickle import read_pickle

SUFFIXES = (".pkl", ".pickle")


def scene_names(path: Path) -> list[str]:
    """Names of the scenes in an info file, such as ``scannet/scene0000_00``, in its order."""
    return list(read_info(path)[0])


def check_scene(path: Path, wanted: str | None) -> None:
    """Look whether a scene can be opened: it is in the file, names pictures, and the first of them is there.

    Raises:
        SceneError: it cannot, or the file is no info file.
    """
    scenes, _ = read_info(path)
    name = find_scene(path, scenes, wanted)
    where = f"{path}, {name}"
    pictures_root(path, images_of(scenes[name], where)[0], where)


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


def read_info(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Scenes by name, and names of the objects' classes by number.

    Raises:
        SceneError: no such file, or no info file.
    """
    try:
        state = path.stat()
    except OSError:
        raise SceneError(missing(path)) from None
    return _read(path, state.st_mtime_ns, state.st_size)


def find_scene(path: Path, scenes: Mapping[str, Any], wanted: str | None) -> str:
    """The full name of a scene; ``scannet/`` may be left out, and all of it where the file has only one.

    Raises:
        SceneError: no such scene.
    """
    some = f"It has {len(scenes)}: {', '.join(list(scenes)[:3])}{', ...' if len(scenes) > 3 else ''}."
    if wanted is None:
        if len(scenes) == 1:
            return next(iter(scenes))
        raise SceneError(f"{path} holds many scenes. Name one: {path.name}#NAME. {some}")
    for name in (wanted, f"scannet/{wanted}"):
        if name in scenes:
            return name
    raise SceneError(f"{path} has no scene {wanted!r}.{near_misses(wanted, scenes)} {some}")


def images_of(entry: Mapping[str, Any], where: str) -> list[Any]:
    """The images that an entry lists.

    Raises:
        SceneError: none.
    """
    images = entry.get("images")
    if not isinstance(images, list) or not images:
        raise SceneError(f"{where}: `images` must be a list, found {brief(images)}.")
    return images


def pictures_root(path: Path, image: Any, where: str) -> Path:
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
