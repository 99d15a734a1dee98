"""Paths in rows."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from ...contracts.errors import RowError, near_misses
from ...contracts.printable import brief

#: A folder of more entries is not searched for names like a missing one.
LISTED = 200


def find_path(source: str | Path, root: Path | None) -> Path:
    """The file or folder that a row names.

    Args:
        source: absolute, from ``root``, or a ``file://`` address.
        root: folder that relative paths start from.

    Raises:
        RowError: an address of the net, or nothing there (with near misses).
    """
    text = str(source).removeprefix("file://")
    if re.match(r"[a-z0-9+]+://|data:", text):
        raise RowError(f"{brief(text)} is no path; download it first and name the file")
    path = Path(text).expanduser()
    if not path.is_absolute() and root is not None:
        path = root / path
    if not path.exists():
        where = "" if path.parent.is_dir() else f", nor does the folder {path.parent}"
        raise RowError(f"{path} does not exist{where}.{near_misses(path.name, _beside(path))}".rstrip("."))
    return path


def _beside(path: Path) -> list[str]:
    """Names of the files beside it; none of a large folder, which cannot be searched for each of many rows."""
    if not path.parent.is_dir():
        return []
    # Path.iterdir would list it all first.
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in islice(entries, LISTED + 1)]
    return sorted(names) if len(names) <= LISTED else []
