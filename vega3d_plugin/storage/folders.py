"""What a user may pass for weights: a folder, or a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from ..contracts.errors import Vega3dError, near_misses
from ..contracts.paths import given_path
from ..contracts.printable import first_line


def local_folder(source: str | Path, error: type[Vega3dError], who: str = "") -> Path | None:
    """The folder that ``source`` names, or None when it is a hub id (``owner/name``).

    Args:
        source: as the user gave it.
        error: what to raise.
        who: who asks, put before the message.

    Raises:
        Vega3dError: of the given type, for a file, for a path that does not exist, and for what looks like a hub id
            but nearly names a folder here; the message lists close matches.
    """
    lead = f"{who}: t" if who else "T"
    path = given_path(source, error, f"{lead}he folder or hub id")
    if os.path.isdir(path):
        return path
    if os.path.lexists(path):
        raise error(f"{lead}he path {path} is a file; a folder or a hub id is expected.")
    name = str(source)
    is_path = name.count("/") != 1 or name.startswith((".", "/", "~"))
    siblings = folders_in(path.parent)
    hint = near_misses(path.name, siblings)
    if is_path or (hint and path.parent != Path()):
        raise error(f"{lead}he folder {path} does not exist.{hint}")
    return None


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder; none of one that cannot be looked into."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def fetch(
    repo_id: str,
    patterns: list[str],
    error: type[Vega3dError],
    *,
    revision: str | None = None,
    token: str | None = None,
    hint: str = "",
) -> Path:
    """Download the files of a hub repository that match ``patterns``, and give their folder.

    Raises:
        Vega3dError: of the given type, when that fails; ``hint`` says what to do instead.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    except Exception as cause:
        raise error(
            f"{repo_id!r} is no folder here and could not be downloaded from the hub "
            f"({type(cause).__name__}: {first_line(cause)}).{f' {hint}' if hint else ''}"
        ) from cause
