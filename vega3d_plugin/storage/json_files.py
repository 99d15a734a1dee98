"""Objects out of JSON files, by the names that older callers have; :mod:`.reading` is the door."""

from __future__ import annotations

from pathlib import Path

from ..contracts.errors import Vega3dError
from .reading import MAX_JSON, JsonObject, parse_object, read_json

__all__ = ["parse_object", "read_object"]


def read_object(path: Path, error: type[Vega3dError], limit: int = MAX_JSON) -> JsonObject:
    """As :func:`~vega3d_plugin.storage.reading.read_json`."""
    return read_json(path, error, limit=limit)
