"""A folder on this machine in front of a store elsewhere: what was read once is read from there."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from ..storage.caches import cache_root
from ..storage.writing import sweep, write_atomically
from .entries import EntryError, open_entry

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes that the entries of one store may take here.
CACHE_BYTES = 50 << 30
# How much is cleared away at once, so that not every new entry looks through all others.
_KEPT = 0.9


class EntryCache:
    """Entries of a remote store in files of their own. Any number of processes may share the folder.

    Args:
        folder: where they lie.
        limit: bytes that they may take; those that were not read for longest go first.
    """

    def __init__(self, folder: Path, limit: int = CACHE_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self._held: int | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, url: str, folder: Path | None = None, limit: int | None = None) -> EntryCache | None:
        """The cache of a store; None where there is no place for it.

        Args:
            url: of the store.
            folder: of all caches; default: ``VEGA3D_CACHE``, else the user's.
            limit: bytes; 0 for no cache.
        """
        root = folder or cache_root()
        if root is None or limit == 0:
            return None
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        return cls(root / "features" / name, CACHE_BYTES if limit is None else limit)

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and record of an entry, unchecked; None when it is not here, or cannot be read."""
        path = self._path(name)
        with suppress(OSError, EntryError):
            found = open_entry(path)
            # Reading does not move a file's time where a disk is mounted so.
            os.utime(path)
            return found
        return None

    def put(self, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, str]) -> None:
        """Keep an entry. A full disk keeps nothing, which is no error."""
        from safetensors.torch import save_file

        path = self._path(name)
        with suppress(OSError, SafetensorError):
            write_atomically(
                path, lambda place: save_file(dict(tensors), place, dict(record)), durable=False, within=self._made()
            )
            self._count(path.stat().st_size)

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def remove(self, name: str) -> None:
        """Forget an entry."""
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def _made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def _count(self, size: int) -> None:
        with self._lock:
            if self._held is None:
                sweep(self.folder)
                self._held = sum(held for _, held, _ in self._files())
            else:
                self._held += size
            if self._held > self.limit:
                self._clear()

    def _clear(self) -> None:
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= self.limit * _KEPT:
                break
            with suppress(OSError):
                path.unlink()
                held -= size
        self._held = held

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            with suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        return found
