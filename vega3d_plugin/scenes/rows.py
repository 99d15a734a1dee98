"""A scene as a source of rows: ``scene: ADDRESS`` in a row of data becomes the frames of chosen views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import SceneError
from .export import pixels
from .files import brief
from .opening import open_scene
from .pixels import PictureFile
from .readers.image_folder import UprightPicture
from .scene import Scene
from .views import RELEASED_VIEWS, choose_views

#: What a row may say beside the address, as in ``{"path": ..., "views": 16, "how": "coverage"}``.
KEYS = ("path", "views", "how", "step", "given", "voxel", "ratio", "preset")


def scene_frames(value: Any, root: Path | None = None, count: int = RELEASED_VIEWS) -> list[Path | Image.Image]:
    """The pictures of the chosen views of a scene that a row names, in time order.

    Args:
        value: an address for :func:`~vega3d_plugin.scenes.opening.open_scene`, or an object with :data:`KEYS`;
            everything but ``path`` and ``views`` is as for :func:`~vega3d_plugin.scenes.views.choose_views`.
        root: folder that relative paths start from.
        count: views, where the row does not say; uniform in time, as the released code shows them.

    Returns:
        Paths of pictures where they are files as they stand, so that nothing is decoded yet; else pictures of PIL.
        A scene with fewer views gives each once.

    Raises:
        SceneError: no such scene, or something else than an address.
        SettingsError: values that cannot be.
        Vega3dError: whatever reading it raises.
    """
    given = dict(value) if isinstance(value, Mapping) else {"path": value}
    unknown = sorted(set(map(str, given)) - set(KEYS))
    address = given.pop("path", None)
    if unknown or not isinstance(address, str | Path) or not str(address):
        what = f"unknown keys {', '.join(unknown)}" if unknown else f"found {brief(address)}"
        raise SceneError(f"`scene` must be an address, or an object with {', '.join(KEYS)}: {what}.")
    asked = {"how": "uniform", "count": given.pop("views", count), **given}
    asked["given"] = tuple(asked["given"]) if isinstance(asked.get("given"), Sequence) else ()
    for key, kinds in (("count", int), ("step", int), ("voxel", float | int), ("ratio", float | int)):
        if key in asked and (not isinstance(asked[key], kinds) or isinstance(asked[key], bool)):
            name = "views" if key == "count" else key
            raise SceneError(f"`scene`, {name}: expected a number, found {brief(asked[key])}.")
    scene = _open(_rooted(str(address), root))
    chosen = _chosen(scene, tuple(sorted(asked.items())))
    return [_picture(scene, index) for index in chosen]


@lru_cache(maxsize=32)
def _open(address: str) -> Scene:
    # Rows of one scene follow each other by the hundred.
    return open_scene(address)


@lru_cache(maxsize=256)
def _chosen(scene: Scene, asked: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    choice = choose_views(scene, gains=False, **dict(asked))
    return tuple(dict.fromkeys(choice.indices))


def _rooted(address: str, root: Path | None) -> str:
    if root is None or address.startswith(("room:", "stereo:")) or Path(address).expanduser().is_absolute():
        return address
    return str(root / address)


def _picture(scene: Scene, index: int) -> Path | Image.Image:
    view = scene.views[index]
    read = view.read_frame
    # A reader of rows turns pictures upright; those of posed views must stay as they are.
    if isinstance(read, UprightPicture) or (isinstance(read, PictureFile) and not _turned(read.path)):
        return read.path.absolute()
    return Image.fromarray(pixels(view.frame()))


@lru_cache(maxsize=65536)
def _turned(path: Path) -> bool:
    with Image.open(path) as image:
        return image.getexif().get(274, 1) != 1
