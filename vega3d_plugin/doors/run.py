"""``python -m vega3d_plugin.run``: what ``vega3d run`` does, for launchers that start modules (``torchrun -m``)."""

from __future__ import annotations

import sys

from vega3d_plugin.cli import main

if __name__ == "__main__":
    sys.argv = ["vega3d", "run", *sys.argv[1:]]
    main()
