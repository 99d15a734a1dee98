"""Reading JSON files that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..contracts.errors import Vega3dError

#: More than any file of settings or of an index takes, in bytes.
LIMIT = 64 << 20


def read_object(path: Path, error: type[Vega3dError], limit: int = LIMIT) -> dict[str, Any]:
    """An object from a JSON file.

    Args:
        path: of the file.
        error: what to raise.
        limit: largest size that is read, in bytes.

    Raises:
        Vega3dError: of the given type, naming the file: it cannot be read, is larger than ``limit``, no JSON, nested
            too deeply, or no object.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes, more than {limit:,}: it is no file of that kind.")
        return parse_object(path.read_bytes(), str(path), error)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem}.") from problem


def parse_object(data: bytes | str, where: str, error: type[Vega3dError]) -> dict[str, Any]:
    """An object from JSON text; ``where`` is for messages."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as problem:
        # Also numbers of too many digits, which are no JSONDecodeError.
        raise error(f"{where} is no valid JSON: {problem}") from None
    if not isinstance(values, dict):
        raise error(f"{where} holds a {type(values).__name__}, expected an object.")
    return values
