"""Text of others, such as names and settings out of files, made safe to print and short enough to read."""

from __future__ import annotations

import re
from typing import Any

#: Longest text of a value in a message.
LONGEST = 200
# Escape sequences move the cursor, recolour or rename a terminal; marks of direction show text in another order than
# it has; halves of surrogate pairs cannot be encoded at all. Tabs and line breaks are left.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """The text with everything that a terminal would act on written as an escape, such as ``\\x1b``."""
    return _UNSAFE.sub(lambda found: _escaped(ord(found[0])), text)


def one_line(text: str) -> str:
    """As :func:`printable`, and line breaks and tabs are escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def brief(value: Any, longest: int = LONGEST) -> str:
    """``repr`` of a value for a message, on one line, cut where it is long."""
    if isinstance(value, str | bytes) and len(value) > longest:
        # Before repr, which would first copy all of it.
        return f"{value[:longest]!r}..."
    try:
        text = one_line(repr(value))
    except (ValueError, RecursionError, MemoryError):
        # Python refuses to write integers of thousands of digits.
        return f"a {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}..."


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def first_line(error: BaseException, longest: int = LONGEST) -> str:
    """The first line of what another library's error says; some go on with all that they know."""
    text = one_line(str(error).strip().partition("\n")[0])
    return text if len(text) <= longest else f"{text[:longest]}..."
