"""The short name of ``vega3d_plugin``: ``import vega3d; vega3d.patch(model)``."""

from typing import TYPE_CHECKING, Any

import vega3d_plugin
from vega3d_plugin import __all__

if TYPE_CHECKING:
    from vega3d_plugin import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(vega3d_plugin, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
