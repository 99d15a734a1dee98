"""``python -m vega3d_plugin.swift_plugin``: prints the path of the plugin file for ms-swift.

The door to :mod:`vega3d_plugin.training.for_ms_swift`.
"""

import sys

from vega3d_plugin.training import for_ms_swift

if __name__ == "__main__":
    print(for_ms_swift.file_for_ms_swift())
else:
    # The very module, so that both names hold the same things, whatever is set in them later.
    sys.modules[__name__] = for_ms_swift
