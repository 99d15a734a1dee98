"""The door to :mod:`vega3d_plugin.evaluation.doctor.examine`."""

import sys

from vega3d_plugin.evaluation.doctor import examine

# The very module, so that both names hold the same things, whatever is set in them later.
sys.modules[__name__] = examine
