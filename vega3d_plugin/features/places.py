"""Where the files of a store lie: a folder, or a URL that fsspec opens (``s3://``, ``gs://``, ``memory://``).

A file is there whole or not at all, in either kind of place: folders get it by renaming, object stores by nature. No
place has a lock; writers never write to one name but with the same content, except where :meth:`Place.create` decides.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..contracts.errors import StoreError
from ..contracts.paths import given_path
from ..contracts.printable import first_line
from ..storage.writing import create_text, leftovers, sweep, write_atomically

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|[A-Za-z][A-Za-z0-9+.-]+::")
#: Packages that fsspec wants for a protocol, for the message when they are missing.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Place(Protocol):
    """Files by their names, which have ``/`` between folders."""

    def __str__(self) -> str:
        """As the user wrote it."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a file. Raises FileNotFoundError; OSError where it cannot be read."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises OSError."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not be there: of several writers at once one wins, the others get FileExistsError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; none of that name is no error."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None without one."""
        ...

    def names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """All files in and below a folder, with their sizes, in no order."""
        ...

    def sweep(self) -> int:
        """Remove what killed writers left; returns how much."""
        ...


class FolderPlace:
    """A folder on a file system.

    Args:
        folder: made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """See the protocol."""
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)

    def write(self, name: str, data: bytes) -> None:
        """See the protocol."""
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda place: place.write_bytes(data), durable=False, within=self.folder)

    def create(self, name: str, data: bytes) -> None:
        """See the protocol."""
        create_text(self.folder / name, data.decode("utf-8"))

    def remove(self, name: str) -> None:
        """See the protocol."""
        (self.folder / name).unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """See the protocol."""
        with suppress(OSError):
            return (self.folder / name).stat().st_size
        return None

    def names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See the protocol. What writers have not finished is left out."""
        waiting = [folder]
        while waiting:
            inner = waiting.pop()
            try:
                entries = list(os.scandir(self.folder / inner))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                else:
                    with suppress(FileNotFoundError):
                        yield name, entry.stat().st_size

    def sweep(self) -> int:
        """See the protocol."""
        folders = [self.folder, *(Path(entry.path) for entry in _folders(self.folder))]
        return sum(sweep(folder) for folder in folders)

    def leftovers(self) -> list[Path]:
        """What :meth:`sweep` would remove."""
        folders = [self.folder, *(Path(entry.path) for entry in _folders(self.folder))]
        return [path for folder in folders for path in leftovers(folder)]


class RemotePlace:
    """A URL that fsspec opens.

    Args:
        url: such as ``s3://bucket/features``.

    Raises:
        StoreError: fsspec is not installed, or does not open such URLs here; the message says what to install.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        fsspec: Any = _fsspec(url)
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except Exception as error:
            protocol = url.partition(":")[0]
            package = _PACKAGES.get(protocol)
            advice = f" pip install {package}" if package and isinstance(error, ImportError) else ""
            raise StoreError(f"{url} cannot be opened: {type(error).__name__}: {first_line(error)}.{advice}") from error
        self.root = self.root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """See the protocol."""
        with _as_os_errors():
            data: bytes = self.files.cat_file(f"{self.root}/{name}", start=start or None, end=stop)
            return data

    def write(self, name: str, data: bytes) -> None:
        """See the protocol."""
        with _as_os_errors():
            self._folder(name)
            self.files.pipe_file(f"{self.root}/{name}", data)

    def create(self, name: str, data: bytes) -> None:
        """See the protocol. Where a place cannot decide between writers, whoever wrote last has it."""
        with _as_os_errors():
            self._folder(name)
            try:
                self.files.pipe_file(f"{self.root}/{name}", data, mode="create")
                return
            except FileExistsError:
                raise
            except (TypeError, NotImplementedError, ValueError):
                # An fsspec or a file system that does not know of it.
                pass
            if self.files.exists(f"{self.root}/{name}"):
                raise FileExistsError(name)
            self.files.pipe_file(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        """See the protocol."""
        with _as_os_errors(), suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")

    def size(self, name: str) -> int | None:
        """See the protocol."""
        with _as_os_errors(), suppress(FileNotFoundError):
            return int(self.files.info(f"{self.root}/{name}")["size"])
        return None

    def names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See the protocol."""
        top = f"{self.root}/{folder}".rstrip("/")
        with _as_os_errors():
            # Another writer's file may be seconds old.
            self.files.invalidate_cache()
            found = self.files.find(top, detail=True)
        for path, info in found.items():
            yield path[len(self.root) :].lstrip("/"), int(info["size"])

    def sweep(self) -> int:
        """See the protocol: nothing is left where files are there whole or not at all."""
        return 0

    def _folder(self, name: str) -> None:
        """Local file systems want folders; object stores have none, and memory's do not mind."""
        parent = f"{self.root}/{name}".rpartition("/")[0]
        with suppress(FileExistsError, NotImplementedError):
            self.files.makedirs(parent, exist_ok=True)


class _as_os_errors:  # noqa: N801  # reads as a statement
    """Have whatever an object store's client raises look like a disk's fault."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise OSError(f"{type(error).__name__}: {first_line(error)}") from error


def is_url(source: object) -> bool:
    """True for ``s3://...`` and its like, ``file://`` too."""
    return isinstance(source, str) and _URL.match(source) is not None


def open_place(source: str | Path) -> FolderPlace | RemotePlace:
    """The place that a user named: a folder, ``file://``, or another URL.

    Raises:
        StoreError: it can be neither.
    """
    if not is_url(source):
        return FolderPlace(given_path(source, StoreError, "The feature store"))
    text = str(source)
    if text.startswith("file://"):
        # Our own writing of files is atomic, fsspec's is not.
        return FolderPlace(given_path(text.removeprefix("file://"), StoreError, "The feature store"))
    return RemotePlace(text)


def _fsspec(url: str) -> Any:
    try:
        return importlib.import_module("fsspec")
    except ImportError:
        raise StoreError(
            f"{url} is a URL, which takes the package fsspec: pip install 'vega3d-plugin[remote]'. A folder needs none."
        ) from None


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(OSError):
        return [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return []
