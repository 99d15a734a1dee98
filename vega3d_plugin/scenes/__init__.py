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
    # Until ``vega3d_plugin/scenes.py`` has moved (its name is taken by this package): its one function.
    if name == "join_views":
        return _old_module().join_views
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _old_module() -> Any:
    import importlib.util
    import sys
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(
        "vega3d_plugin.joined_views", Path(__file__).parent.with_suffix(".py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module
