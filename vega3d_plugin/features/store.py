"""A store of feature maps, one file per clip.

**The key of an entry** is told here and nowhere else. Features depend on the frames, on the prior's weights, on its
settings and on the dtype it computes in, and on nothing else; so a map is found again by

1. the content of the frames, as the host saw them: :func:`~vega3d_plugin.contracts.clips.clip_key`, a hash of the
   pixels rounded to 8 bits and of their shape ``[T, 3, H, W]``. It is the name of the entry,
   ``<first two digits>/<key>.safetensors``;
2. the dtype that the prior computed in, which rounds features: :func:`dtype_key` puts it behind the name, unless it is
   float32;
3. the prior's fingerprint, a hash of its weights up to the tap and of every setting that changes a feature
   (:attr:`Prior.fingerprint <vega3d_plugin.contracts.priors.Prior.fingerprint>`). It is one for the whole store and
   stands in ``store.json``; a prior of another fingerprint is refused (:meth:`FeatureStore.bind`).

What changes speed or memory alone (device, ``chunk_frames``, ``max_tokens``, ``fast``, ``compile``, ``offload``) is in
none of them: such runs share their entries.

**What an entry proves.** Key, shape, dtype and a checksum stand in the file beside the map and are compared each time
it is read from disk. An entry that does not hold is told, once for a store, computed again and replaced. Entries that
versions before 0.1.0 wrote carry no such record; they are taken in the stores that these versions began, if they are
finite feature maps of the prior's size.
"""

from __future__ import annotations

import errno
import json
import threading
import time
import warnings
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..contracts.errors import StoreError, Vega3dWarning
from ..contracts.priors import Prior
from ..storage.json_files import read_object
from ..storage.writing import create_text, sweep
from .entries import FORMAT as ENTRIES
from .entries import EntryError, check_map, read_entry, write_entry

FORMAT = 1
OWNER_FILE = "store.json"
# More than an owner takes, in bytes.
_OWNER_BYTES = 1 << 16
# How long a file without content may be one that is being written (seconds).
_BEING_WRITTEN = 2.0


class FeatureStore:
    """Feature maps by clip key: in memory, and on disk when it has a folder.

    One store holds the features of one prior with one set of settings; ``store.json`` says which. Copies of a model
    share the store; a pickle carries the folder only. Any number of threads may use one store, and any number of
    processes read and write one folder. What cannot be written is kept in memory alone, and one warning says so.

    Args:
        folder: where files go; None keeps features in memory only.
        memory_bytes: how much memory recent features may take, in bytes; the oldest go first.
    """

    def __init__(self, folder: str | Path | None = None, memory_bytes: int = 2 << 30) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.memory_bytes = memory_bytes
        self._recent: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0
        self._owner: dict[str, Any] | None = None
        self._found: dict[str, Any] | None = None
        # Whose entries lie in the folder cannot be told where it could not be claimed.
        self._memory_only = False
        self._told: set[str] = set()
        self._swept: set[Path] = set()
        # Held for bookkeeping alone, never while a prior works or an entry is read or written.
        self._lock = threading.Lock()

    def bind(self, prior: Prior) -> None:
        """Make sure that the store holds this prior's features, or claim an empty one for it.

        Raises:
            StoreError: the store belongs to another prior, feature dim or setting; the message has both. Or its
                ``store.json`` is damaged.
        """
        owner = {
            "format": FORMAT,
            "prior": prior.settings.name if prior.settings else type(prior).__name__,
            "feature_dim": prior.feature_dim,
            "fingerprint": prior.fingerprint,
        }
        with self._lock:
            self._bind(owner)

    def _bind(self, owner: dict[str, Any]) -> None:
        if self._owner is None and self.folder is not None:
            sweep(self.folder)
        found = self._owner or self._read_owner() or self._claim(owner)
        lines = [
            f"{key}: store {found.get(key)!r:.80}, prior {owner[key]!r}"
            for key in owner
            if found.get(key) != owner[key]
        ]
        if lines:
            raise StoreError(
                f"The feature store {self.folder or '(in memory)'} belongs to another prior. " + "; ".join(lines) + ". "
                "Use another folder, or the prior and settings that filled this one."
            )
        self._owner = owner

    def get(self, key: str) -> Tensor | None:
        """The feature map ``[T', C, h, w]`` of a clip, on the CPU, or None: then it is to be computed."""
        recent = self._recall(key)
        if recent is not None:
            return recent
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        features = self._read(path, key)
        if features is not None:
            self._remember(key, features)
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Keep the feature map ``[T', C, h, w]`` of a clip.

        Raises:
            StoreError: it is no feature map: rank, dtype, or values that are not finite.
        """
        features = features.detach().to("cpu", copy=True)
        try:
            check_map(features, None)
        except EntryError as error:
            raise StoreError(f"The features of clip {key} cannot be kept: {error}.") from None
        path = self._path(key)
        if path is not None and self.folder is not None:
            if path.parent not in self._swept:
                # Where versions before 0.1.0 wrote; what this one leaves is in the store's own folder.
                self._swept.add(path.parent)
                sweep(path.parent)
            try:
                write_entry(path, key, features, self.folder)
            except (OSError, SafetensorError) as error:
                self._tell_not_kept(error)
        self._remember(key, features)

    def __contains__(self, key: str) -> bool:
        path = self._path(key)
        return key in self._recent or (path is not None and path.is_file())

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.folder, self.memory_bytes)

    def _path(self, key: str) -> Path | None:
        if self.folder is None or self._memory_only:
            return None
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path, key: str) -> Tensor | None:
        """An entry from disk; None when it is not there or does not hold, which is told."""
        owner = self._owner_on_disk()
        dim = owner.get("feature_dim") if isinstance(owner.get("feature_dim"), int) else None
        try:
            return read_entry(path, key, dim, recorded=owner.get("entries") == ENTRIES)
        except FileNotFoundError:
            return None
        except EntryError as error:
            self._tell(
                "damaged",
                f"The feature store's {path} is damaged: {error}. These features are computed again and replaced, as "
                "are all others of this store that do not hold; this is told once.",
            )
            return None

    def _read_owner(self) -> dict[str, Any] | None:
        """What ``store.json`` says, or None without one."""
        path = None if self.folder is None else self.folder / OWNER_FILE
        if path is None or not path.exists():
            return None
        until = time.monotonic() + _BEING_WRITTEN
        while path.is_file() and path.stat().st_size == 0 and time.monotonic() < until:
            time.sleep(0.02)
        self._found = read_object(path, StoreError, _OWNER_BYTES)
        return self._found

    def _owner_on_disk(self) -> dict[str, Any]:
        if self._found is None:
            with suppress(StoreError):
                self._read_owner()
        return self._found or {}

    def _claim(self, owner: dict[str, Any]) -> dict[str, Any]:
        """Write ``store.json``, unless another process does so first; returns what it says then."""
        if self.folder is None:
            return owner
        claim = {**owner, "entries": ENTRIES}
        try:
            create_text(self.folder / OWNER_FILE, json.dumps(claim, indent=2))
        except FileExistsError:
            return self._read_owner() or claim
        except OSError as error:
            self._memory_only = True
            self._tell_not_kept(error)
        self._found = claim
        return claim

    def _tell_not_kept(self, error: Exception) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Make room on the disk" if full else "Give it a folder that can be written to"
        self._tell(
            "not kept",
            f"Features are not kept in the feature store {self.folder}: {error}. They are used all the same, and will "
            f"be computed again in the next run. {advice}. This is told once.",
        )

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(message, Vega3dWarning, stacklevel=4)

    def _recall(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
            return self._recent.get(key)

    def _remember(self, key: str, features: Tensor) -> None:
        with self._lock:
            if key in self._recent:
                self._held -= self._recent.pop(key).nbytes
            self._held += features.nbytes
            self._recent[key] = features
            while self._held > self.memory_bytes and len(self._recent) > 1:
                _, old = self._recent.popitem(last=False)
                self._held -= old.nbytes


def dtype_key(key: str, dtype: torch.dtype | None) -> str:
    """A clip key that also tells the prior's compute dtype, which rounds features differently."""
    return key if dtype in (None, torch.float32) else f"{key}-{str(dtype).removeprefix('torch.')}"
