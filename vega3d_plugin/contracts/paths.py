"""Paths as users and files give them: anything may stand there that no file system takes."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import Vega3dError
from .printable import brief

#: Bytes of one name and of a whole path, as Linux and macOS have them.
NAME_BYTES, PATH_BYTES = 255, 4096


def given_path(source: object, error: type[Vega3dError], what: str = "The path") -> Path:
    """The path that a user or a file named, ``~`` expanded. Nothing is looked up.

    Args:
        source: text or a path.
        error: what to raise.
        what: how the message begins.

    Raises:
        Vega3dError: of the given type, for what cannot be a path: another type, a zero byte, a name of over 255
            bytes, characters that cannot be encoded, or the home folder of a user who does not exist.
    """
    problem = path_problem(source)
    if problem:
        raise error(f"{what} {brief(source)} cannot be used: {problem}.")
    return Path(os.path.expanduser(str(source)))


def path_problem(source: object) -> str:
    """Why something cannot be the path of a file; empty when it can."""
    if not isinstance(source, str | os.PathLike):
        return f"it is a {type(source).__name__}, a path is expected"
    text = os.fspath(source)
    if not isinstance(text, str):
        return "it is a path in bytes, text is expected"
    if "\0" in text:
        return "it holds a zero byte"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "it holds characters that cannot be encoded"
    if len(encoded) > PATH_BYTES or any(len(name) > NAME_BYTES for name in encoded.split(b"/")):
        return f"a name in it is longer than {NAME_BYTES} bytes, or the whole than {PATH_BYTES}"
    # Unlike Path.expanduser, this leaves the text as it is where there is no such user; a file may be called so.
    if text.startswith("~") and os.path.expanduser(text).startswith("~") and not os.path.lexists(text):
        return f"there is no user {text.partition('/')[0][1:]!r}"
    return ""


def names_file(source: object) -> bool:
    """True when a regular file of that name exists; False for what cannot be a path too."""
    # Unlike Path.is_file, this raises nothing where a folder on the way cannot be entered.
    return not path_problem(source) and os.path.isfile(os.path.expanduser(str(source)))


def names_folder(source: object) -> bool:
    """True when a folder of that name exists; False for what cannot be a path too."""
    return not path_problem(source) and os.path.isdir(os.path.expanduser(str(source)))
