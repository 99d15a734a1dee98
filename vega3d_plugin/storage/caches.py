"""Where this library keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path | None:
    """``VEGA3D_CACHE``, else a folder among the user's caches; None for a user without a home folder."""
    own, shared = os.environ.get("VEGA3D_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "vega3d"
    except RuntimeError:  # a user without a home folder
        return None
