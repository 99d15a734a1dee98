"""The door to :mod:`vega3d_plugin.contracts.seams`."""

import sys

from vega3d_plugin.contracts import seams

# The very module, so that both names hold the same things, whatever is set in them later.
sys.modules[__name__] = seams
