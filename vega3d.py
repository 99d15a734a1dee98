"""The short name of ``vega3d_plugin``: ``import vega3d; vega3d.patch(model)``."""

from vega3d_plugin import *  # noqa: F403
from vega3d_plugin import __all__, __version__  # noqa: F401
