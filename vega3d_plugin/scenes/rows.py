"""A scene as a source of rows: ``scene: ADDRESS`` in a row of data becomes the frames of chosen views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, StrictFloat, StrictInt, StrictStr
from torch import Tensor

from ..contracts.settings import Settings
from .coordinates import Preset
from .export import pixels
from .opening import open_scene
from .pixels import PictureFile, picture_turn
from .readers.image_folder import UprightPicture
from .scene import Scene
from .view_points import check_metric, view_points
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


@dataclass(frozen=True)
class ScenePoints:
    """World points of the views that :func:`scene_frames` shows for the same arguments.

    Attributes:
        value, root, count: see there.
    """

    value: Any
    root: Path | None = None
    count: int = RELEASED_VIEWS

    def check(self) -> None:
        """Nothing, where these views have depth, intrinsics and poses in metres.

        Raises:
            SceneError: it has not.
        """
        scene, chosen = _open_chosen(self.value, self.root, self.count)
        check_metric(scene.select(chosen))

    def __call__(self, places: Sequence[int], crop: tuple[int, int] | None = None) -> Tensor:
        """Those of the views at these places among the chosen ones, see :func:`view_points`; repeated as they are."""
        scene, chosen = _open_chosen(self.value, self.root, self.count)
        once = list(dict.fromkeys(places))
        points = view_points(scene.select([chosen[place] for place in once]), crop=crop)
        return points[[once.index(place) for place in places]]


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
    scene, chosen = _open_chosen(value, root, count)
    return [_picture(scene, index) for index in chosen]


def _open_chosen(value: Any, root: Path | None, count: int) -> tuple[Scene, tuple[int, ...]]:
    """The scene that a row names, and the places of its views that are shown."""
    asked = SceneRow.parse({"path": value} if isinstance(value, str) else value, "scene")
    asked = asked if asked.views is not None else asked.model_copy(update={"views": count})
    scene = _open(_rooted(asked.path, root))
    return scene, _chosen(scene, asked)


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
