"""Writing files so that an interrupted write leaves the old file whole, and clearing away what killed writers left."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .processes import this_process, writer_is_alive

#: Something temporary whose writer cannot be asked is left over when nobody has written to it for so long (seconds).
FORGOTTEN = 3600.0
# File systems take 255 bytes a name; the rest of a temporary folder's name is under 80.
_NAME_BYTES = 160
_TEMPORARY = re.compile(r"\..*\.~(?P<process>[0-9a-f]+-\d+-\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
# As versions before 0.1.0 named them; and safetensors names its own.
_OTHERS = re.compile(r"\..+\.(safetensors|json|md|yaml|png)\.[a-z0-9_]{8}|\..+-[a-z0-9_]{8}\.tmp|\.tmp[A-Za-z0-9]{6}")


def write_atomically(
    path: Path, write: Callable[[Path], object], *, durable: bool = True, within: Path | None = None
) -> None:
    """Let ``write`` fill a file elsewhere, then rename it over ``path``.

    Whoever reads ``path`` finds the old file or the new one, whole; so does whoever comes after a kill.

    Args:
        path: the file; its folder is made.
        write: fills the file whose path it is given: one of the same name in a folder of its own, so that what a
            library leaves beside it when it is killed is cleared away with that folder.
        durable: have the disk confirm it, so that it outlasts a power failure too.
        within: where the temporary folder is made, on the same file system; default: the folder of ``path``.

    Raises:
        OSError: it cannot be written; nothing has changed then.
    """
    with written_whole(path, durable=durable, within=within) as temporary:
        write(temporary)


@contextmanager
def written_whole(path: Path, *, durable: bool = True, within: Path | None = None) -> Iterator[Path]:
    """As :func:`write_atomically`, for a file that grows bit by bit: the block fills the file whose path it is given.

    When the block ends well the file takes the place of ``path``; on an error nothing has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(path, within or path.parent) as folder:
        temporary = folder / path.name
        # Some writers make files that only their owner can read; this shows what the umask gives to a new one.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        if durable:
            _confirm(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if durable:
            confirm_folder(path.parent)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """The block fills the folder whose path it is given, which takes the place of ``path`` when the block ends well.

    Raises:
        OSError: it cannot be written, or ``path`` is there and holds something; nothing has changed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(path, path.parent) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _confirm(file, os.O_RDWR)
        # Over a folder that is empty, as over none.
        os.replace(temporary, path)
        confirm_folder(path.parent)


@contextmanager
def _temporary_folder(path: Path, within: Path) -> Iterator[Path]:
    name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])
    folder = within / f".{name}.~{this_process()}-{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        # On NFS a file that is still open somewhere cannot go; it is swept later.
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    data = text.encode("utf-8")
    write_atomically(path, lambda temporary: temporary.write_bytes(data), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True, default: Callable[[Any], Any] | None = None) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=default) + "\n", durable=durable)


def create_text(path: Path, text: str) -> None:
    """Write a text file that must not be there yet: of several writers at once, one wins.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(path, path.parent) as folder:
        temporary = folder / path.name
        temporary.write_bytes(text.encode("utf-8"))
        _confirm(temporary, os.O_RDWR)
        try:
            # A link is made whole or not at all, also on NFS.
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            _create_without_links(path, text)
        confirm_folder(path.parent)


def _create_without_links(path: Path, text: str) -> None:
    """On file systems that know no links; a reader may find it half written for a moment."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def leftovers(folder: Path) -> Iterator[Path]:
    """The temporary files and folders in a folder whose writers are dead."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        named = _TEMPORARY.fullmatch(entry.name)
        if named is None and not (_OTHERS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        alive = None if named is None else writer_is_alive(named["process"])
        if alive is False or (alive is None and time.time() - _last_written(Path(entry.path)) > FORGOTTEN):
            yield Path(entry.path)


def sweep(folder: Path) -> int:
    """Remove what dead writers left in a folder; returns how many files and folders."""
    count = 0
    for path in leftovers(folder):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            count += 1
    return count


def _last_written(path: Path) -> float:
    """When a file, or any in a folder, was last written to; now, where that cannot be told."""
    try:
        inside = [entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(path)] if path.is_dir() else []
        return max([path.lstat().st_mtime, *inside])
    except OSError:
        return time.time()


def _confirm(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems confirm nothing.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def confirm_folder(folder: Path) -> None:
    """Have the disk confirm the names in a folder, where the system can."""
    with suppress(OSError):
        _confirm(folder, os.O_RDONLY)
