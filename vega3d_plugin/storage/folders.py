"""What a user may pass for weights: a folder, or a hub id."""

from __future__ import annotations

from pathlib import Path

from ..contracts.errors import Vega3dError, near_misses


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
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise error(f"{lead}he path {path} is a file; a folder or a hub id is expected.")
    name = str(source)
    is_path = name.count("/") != 1 or name.startswith((".", "/", "~"))
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = near_misses(path.name, siblings)
    if is_path or (hint and path.parent != Path()):
        raise error(f"{lead}he folder {path} does not exist.{hint}")
    return None


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
            f"{repo_id!r} is no folder here and could not be fetched from the hub "
            f"({type(cause).__name__}: {cause}).{f' {hint}' if hint else ''}"
        ) from cause
