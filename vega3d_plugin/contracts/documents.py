"""Text files and JSON as plain values, at bounded cost: whatever the bytes, a value or a :class:`DocumentError`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from .errors import Vega3dError
from .printable import brief

#: Mappings and lists within each other. Settings need 8; Python's own limit ends in a RecursionError somewhere later.
MAX_DEPTH = 64
#: Digits of an integer. Seeds have 20; one of over 4300 Python refuses to write, in an error message too.
MAX_DIGITS = 100
#: Bytes of a file of settings; a large one has some thousand.
MAX_SETTINGS = 1 << 20


class DocumentError(Vega3dError, ValueError):
    """A file or a text cannot be read as what it should be.

    Attributes:
        reason: what is wrong with it, without its name.
        line: where, from 1; None for all of it.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        self.reason, self.line = reason, line
        super().__init__(f"line {line}: {reason}" if line else reason)

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.line)


def read_bytes(path: Path, limit: int = MAX_SETTINGS) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileNotFoundError: there is none.
        DocumentError: something else of that name, a file of more than ``limit`` bytes, or one that cannot be read.
    """
    try:
        # A pipe or a device would be waited for, or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DocumentError("it is no regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(getattr(error, "strerror", None) or str(error)) from error
    if len(data) > limit:
        raise DocumentError(f"it has more than {limit:,} bytes")
    return data


def decode(data: bytes) -> str:
    """Bytes as UTF-8, a byte order mark left out. Raises :class:`DocumentError` for any other text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"it is not UTF-8: {error.reason} at byte {error.start}", line) from None


def parse_json(text: str | bytes) -> Any:
    """Plain values from JSON.

    Python's own NaN and Infinity are read, since Python writes them; who takes a number checks it.

    Raises:
        DocumentError: not JSON, not UTF-8, a key that is there twice, an integer of over :data:`MAX_DIGITS` digits, or
            values nested deeper than :data:`MAX_DEPTH`.
    """
    text = decode(text) if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice, parse_int=parse_integer)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{error.msg} at character {error.colno}", error.lineno) from None
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        raise _too_deep()
    return value


def is_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True when mappings and lists lie deeper within each other than ``depth``."""
    level = [value]
    for _ in range(depth + 1):
        # What is there several times is looked at once, or it could double from level to level.
        level = list({id(item): item for each in level for item in _inner(each)}.values())
        if not level:
            return False
    return True


def parse_integer(text: str) -> int:
    """An integer of at most :data:`MAX_DIGITS` digits, in any base that Python knows.

    Raises:
        DocumentError: more digits.
        ValueError: no integer.
    """
    if len(text) > MAX_DIGITS:
        raise DocumentError(f"the integer {text[:12]}... has {len(text)} digits, more than {MAX_DIGITS}")
    return int(text, 0) if text[:2].lower() in ("0x", "0o") else int(text)


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {brief(twice)} is there twice")
    return found


def _too_deep() -> DocumentError:
    return DocumentError(f"its values are nested deeper than {MAX_DEPTH}")
