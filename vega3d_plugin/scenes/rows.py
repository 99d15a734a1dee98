"""A scene as a source of rows: ``scene: ADDRESS`` in a row of data becomes the frames of chosen views."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from ..contracts.settings import Settings
from .coordinates import Preset
from .export import pixels
from .opening import open_scene
from .pixels import PictureFile, picture_turn
from .readers.image_folder import UprightPicture
from .scene import Scene
from .views import RELEASED_VIEWS, VOXEL, How, choose_views


class SceneRow(Settings):
    """What a row says about its scene; all but ``path`` is as for :func:`~vega3d_plugin.scenes.views.choose_views`.

    Attributes:
        path: an address for :func:`~vega3d_plugin.scenes.opening.open_scene`.
        views: how many, for ``uniform`` and ``coverage``; None: what the experiment gives the host.
    """

    path: StrictStr = Field(min_length=1)
    views: StrictInt | None = Field(None, ge=1)
    how: How = "uniform"
    step: StrictInt = Field(1, ge=1)
    given: tuple[StrictInt | StrictStr, ...] = ()
    voxel: StrictFloat = VOXEL
    ratio: StrictFloat = 1.0
    preset: Preset | None = None


def scene_frames(value: Any, root: Path | None = None, count: int = RELEASED_VIEWS) -> list[Path | Image.Image]:
    """The pictures of the chosen views of a scene that a row names, in time order.

    Args:
        value: an address, or an object with the keys of :class:`SceneRow`.
        root: folder that relative paths start from.
        count: views, where the row does not say; uniform in time, as the released code shows them.

    Returns:
        Paths of pictures where they are files as they stand, so that nothing is decoded yet; else pictures of PIL.
        A scene with fewer views gives each once.

    Raises:
        SettingsError: no address, unknown keys, or values that cannot be.
        SceneError: no such scene, or one whose geometry does not allow the choice.
        Vega3dError: whatever reading it raises.
    """
    asked = SceneRow.parse({"path": value} if isinstance(value, str) else value, "scene")
    asked = asked if asked.views is not None else asked.model_copy(update={"views": count})
    scene = _open(_rooted(asked.path, root))
    return [_picture(scene, index) for index in _chosen(scene, asked)]


@lru_cache(maxsize=32)
def _open(address: str) -> Scene:
    # Rows of one scene follow each other by the hundred.
    return open_scene(address)


@lru_cache(maxsize=256)
def _chosen(scene: Scene, asked: SceneRow) -> tuple[int, ...]:
    choice = choose_views(
        scene,
        asked.how,
        asked.views or RELEASED_VIEWS,
        step=asked.step,
        given=asked.given,
        voxel=asked.voxel,
        ratio=asked.ratio,
        preset=asked.preset,
        gains=False,
    )
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
    return picture_turn(path) != 1
