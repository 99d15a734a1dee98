"""A place to frames: images, videos, rendered rooms, posed RGB-D, view selection."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .consistency import check_geometry
    from .opening import open_scene, open_scenes
    from .scene import Scene, SceneObject, View
    from .views import choose_views
    from .worlds import rendered_scene

__all__ = [
    "Scene",
    "SceneObject",
    "View",
    "check_geometry",
    "choose_views",
    "open_scene",
    "open_scenes",
    "rendered_scene",
]

_PLACES = {
    "Scene": "scene",
    "SceneObject": "scene",
    "View": "scene",
    "check_geometry": "consistency",
    "choose_views": "views",
    "open_scene": "opening",
    "open_scenes": "opening",
    "rendered_scene": "worlds",
}


def __getattr__(name: str) -> Any:
    # Named here and imported when asked for: what only shows a video needs no torch.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
