"""LoRA blocks that the installed PEFT has taken before.

PEFT takes seconds to import, and says the same of a block each time. So what it took is noted among the user's caches,
by the block's values and by PEFT's own file; a block that it refuses is asked about again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..storage.caches import cache_root
from ..storage.versions import library_version, package_version

FOLDER = "lora_blocks"
#: Notes that are kept; then all are dropped, so that overrides of a sweep do not pile up.
MOST = 1000
# Of what is noted: another number when the checks of a block change.
_FORMAT = 2


def known(lora: Mapping[str, Any]) -> bool:
    """Whether PEFT has taken this very block."""
    note = _note(lora)
    return note is not None and note.is_file()


def remember(lora: Mapping[str, Any]) -> None:
    """Note that PEFT has taken a block. Where nothing can be written, nothing is noted."""
    note = _note(lora)
    if note is None:
        return
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        others = list(note.parent.iterdir())
        for other in others if len(others) >= MOST else []:
            other.unlink(missing_ok=True)
        note.touch()


def _note(lora: Mapping[str, Any]) -> Path | None:
    """The empty file that stands for a block; None where there is no place for it, or no way to name it."""
    root, found = cache_root(), find_spec("peft")
    if root is None or found is None or found.origin is None:
        return None
    try:
        changed = (Path(found.origin).parent / "tuners" / "lora" / "config.py").stat().st_mtime_ns
        named = [_FORMAT, library_version(), package_version("peft"), found.origin, changed, lora]
        text = json.dumps(named, sort_keys=True, allow_nan=False)
    except (OSError, TypeError, ValueError):
        return None
    return root / FOLDER / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
