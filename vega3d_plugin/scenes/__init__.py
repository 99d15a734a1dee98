"""A place to frames: images, videos, rendered rooms, posed RGB-D, view selection."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Until ``vega3d_plugin/scenes.py`` has moved (its name is taken by this package): its one function.
    if name == "join_views":
        import importlib.util
        import sys
        from pathlib import Path

        path = Path(__file__).parent.with_suffix(".py")
        spec = importlib.util.spec_from_file_location("vega3d_plugin.joined_views", path)
        if spec is not None and spec.loader is not None:
            module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
            spec.loader.exec_module(module)
            return module.join_views
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
