"""The door to the warnings, which are in :mod:`vega3d_plugin.contracts.errors`."""

import sys

from vega3d_plugin.contracts import errors

# The very module, so that both names hold the same things, whatever is set in them later.
sys.modules[__name__] = errors
