"""A store of feature maps: what a prior gave for a clip, found again by the clip's content.

**The name of an entry** is told here and nowhere else. Features depend on the frames, on the prior's weights, on its
settings and on the dtype it computes in, and on nothing else; so a map is found again by

1. the content of the frames, as the host saw them: :func:`~vega3d_plugin.contracts.clips.clip_key`, a hash of the
   pixels rounded to 8 bits and of their shape ``[T, 3, H, W]``. The name of the entry begins with it;
2. the dtype that the prior computed in, which rounds features: :func:`dtype_key` puts it behind the key, unless it is
   float32;
3. the form in which the map is kept, see :mod:`.forms`: behind that, unless it is ``native``;
4. the prior's fingerprint, a hash of its weights up to the tap and of every setting that changes a feature
   (:attr:`Prior.fingerprint <vega3d_plugin.contracts.priors.Prior.fingerprint>`). It is one for the whole store and
   stands in ``store.json``; a prior of another fingerprint is refused (:meth:`FeatureStore.bind`).

What changes speed or memory alone (device, ``chunk_frames``, ``max_tokens``, ``fast``, ``compile``, ``offload``) is in
none of them: such runs share their entries.

**Where an entry lies.** It is written as a file of its own, ``<first two digits>/<name>.safetensors``: so a writer that
dies loses one clip. :meth:`FeatureStore.pack` puts many into one shard (:mod:`.shards`). A store elsewhere
(``s3://...``) has a folder on this machine in front of it (:mod:`.cache`).

**What an entry proves.** Name, shape, dtype and a checksum stand beside the map and are compared each time it is read
from disk. An entry that does not hold is told, once for a store, computed again and replaced. Entries that versions
before 0.1.0 wrote carry no such record; they are taken in the stores that these versions began, if they are finite
feature maps of the prior's size.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..contracts.clips import TokenGrid
from ..contracts.errors import StoreError, Vega3dWarning
from ..storage.reading import parse_object, read_json
from ..storage.writing import sweep
from .cache import EntryCache
from .entries import FORMAT as ENTRIES
from .entries import EntryError, check_entry, check_map, checked_map, make_record, open_entry, read_entry, write_entry
from .forms import Form, decode, encode, numbers_of
from .places import FolderPlace, open_place
from .shards import SHARD_BYTES, SHARDS, ShardIndex, parse_entry, read_packed, write_shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..contracts.priors import Prior

FORMAT = 1
OWNER_FILE = "store.json"
SUFFIX = ".safetensors"
# More than an owner takes, in bytes.
_OWNER_BYTES = 1 << 16
# How long a file without content may be one that is being written (seconds).
_BEING_WRITTEN = 2.0
# For how long an entry that is not there is not looked for among other writers' new shards (seconds).
_LOOK_AGAIN = 30.0
# Maps that may wait to be written.
_WAITING = 2


class FeatureStore:
    """Feature maps by clip key: in memory, and in files when it has a folder or a URL.

    One store holds the features of one prior with one set of settings; ``store.json`` says which. Copies of a model
    share the store; a pickle carries no features. Any number of threads may use one store, and any number of
    processes, on any number of machines, read and write one folder. What cannot be written is kept in memory alone, and
    one warning says so.

    Args:
        folder: where files go: a folder, or a URL that fsspec opens, such as ``s3://bucket/features``; None keeps
            features in memory only.
        memory_bytes: how much memory recent features may take, in bytes; the oldest go first.
        form: in which maps are kept: ``native``, ``aligned``, and either with ``-bf16`` or ``-int8``, see
            :mod:`~vega3d_plugin.features.forms`.
        cache_bytes: for a URL: how much of it may lie on this machine's disk, in ``VEGA3D_CACHE``; 0 for nothing.
            Default: 50 GiB.

    Raises:
        StoreError: no such form, a path that cannot be one, or a URL that cannot be opened.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        memory_bytes: int = 2 << 30,
        form: str | Form = "native",
        cache_bytes: int | None = None,
    ) -> None:
        self.place = None if folder is None else open_place(folder)
        #: The folder on this machine; None for a store in memory or elsewhere.
        self.folder = self.place.folder if isinstance(self.place, FolderPlace) else None
        self.memory_bytes, self.form, self.cache_bytes = memory_bytes, Form.parse(form), cache_bytes
        remote = self.place is not None and self.folder is None
        self.cache = EntryCache.of(str(self.place), limit=cache_bytes) if remote else None
        self.index = None if self.place is None else ShardIndex(self.place)
        self._looked: float | None = None
        self._recent: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0
        self._owner: dict[str, Any] | None = None
        self._found: dict[str, Any] | None = None
        # Whose entries lie in the folder cannot be told where it could not be claimed.
        self._memory_only = False
        self._told: set[str] = set()
        self._swept: set[Path] = set()
        self._must_keep = False
        #: Bytes of the tensors that were last put.
        self.last_bytes = 0
        self._writer: ThreadPoolExecutor | None = None
        self._unwritten: deque[tuple[str, Future[None]]] = deque()
        # Held for bookkeeping alone, never while a prior works or an entry is read or written.
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        """The folder or URL, for messages."""
        return "(in memory)" if self.place is None else str(self.place)

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

    def owner(self) -> dict[str, Any] | None:
        """What ``store.json`` says of the prior whose features these are; None without one.

        Raises:
            StoreError: it is damaged.
        """
        return self._owner or self._read_owner()

    def claim_as(self, other: FeatureStore) -> None:
        """Make sure that the store holds features of the same prior as another one, or claim an empty one for it.

        Raises:
            StoreError: as for :meth:`bind`; or the other one is of no prior yet.
        """
        owner = other.owner()
        if owner is None:
            raise StoreError(f"{other.where} is no feature store: there is no {OWNER_FILE} in it.")
        with self._lock:
            self._bind({key: owner.get(key) for key in ("format", "prior", "feature_dim", "fingerprint")})

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
                f"The feature store {self.where} belongs to another prior. " + "; ".join(lines) + ". "
                "Use another folder, or the prior and settings that filled this one."
            )
        self._owner = owner

    def name(self, key: str, grid: TokenGrid | None = None, space: str = "") -> str:
        """The name under which a clip's map is kept in this store's form; arguments as for :meth:`.forms.Form.name`."""
        return self.form.name(key, grid, space)

    def get(self, key: str) -> Tensor | None:
        """The feature map ``[T', C, h, w]`` of an entry, on the CPU, or None: then it is to be computed."""
        recent = self._recall(key)
        if recent is not None:
            return recent
        features = self._stored(key)
        if features is not None:
            self._remember(key, features)
        return features

    def put(self, key: str, features: Tensor) -> Tensor:
        """Keep the feature map ``[T', C, h, w]`` of a clip.

        Returns:
            The map as :meth:`get` will give it: rounded, where the name says so.

        Raises:
            StoreError: it is no feature map: rank, dtype, or values that are not finite.
        """
        features = features.detach().to("cpu", copy=True)
        try:
            check_map(features, None)
        except EntryError as error:
            raise StoreError(f"The features of clip {key} cannot be kept: {error}.") from None
        tensors = encode(features, numbers_of(key))
        self.last_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self.place is not None and not self._memory_only:
            if self._writer is None:
                self._write(key, tensors)
            else:
                while len(self._unwritten) >= _WAITING:
                    self._unwritten.popleft()[1].result()
                self._unwritten.append((key, self._writer.submit(self._write, key, tensors)))
        if numbers_of(key):
            features = decode(tensors)
        self._remember(key, features)
        return features

    @contextmanager
    def writing_behind(self) -> Iterator[None]:
        """Within it, files are written by another thread, while the prior works on the next clip."""
        with ThreadPoolExecutor(1, thread_name_prefix="vega3d-store") as self._writer:
            try:
                yield
            finally:
                self.flush()
                self._writer = None

    def require_keeping(self) -> None:
        """Make features that cannot be kept an error, as where keeping them is the purpose.

        Raises:
            StoreError: the place could not be claimed already.
        """
        self._must_keep = True
        if self._memory_only:
            raise StoreError(f"The feature store {self.where} cannot be written to. Give it another folder.")

    def flush(self) -> None:
        """Wait until everything that was put is written."""
        while self._unwritten:
            self._unwritten.popleft()[1].result()

    def fetch(self, key: str) -> bool:
        """Have an entry near, to be read soon; returns whether it is there.

        Of a store elsewhere it is put on this machine's disk; of a folder the system is asked to read it into memory.
        """
        if key in self._recent:
            return True
        if self.folder is not None:
            return self._read_soon(self.folder, key)
        if self.cache is not None and key not in self.cache:
            with suppress(OSError, EntryError):
                return self._from_cache(key) is not None
            return False
        return key in self

    def _read_soon(self, folder: Path, key: str) -> bool:
        self._look()
        packed = None if self.index is None else self.index.get(key)
        path = folder / (entry_file(key) if packed is None else packed.shard)
        start, size = (0, 0) if packed is None else (min(span.start for span in packed.spans.values()), packed.bytes)
        try:
            with path.open("rb") as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_WILLNEED)
                return True
        except OSError:
            return False

    def __contains__(self, key: str) -> bool:
        if key in self._recent:
            return True
        if self.place is None or self.index is None or self._memory_only:
            return False
        self._look()
        if self.index.get(key) is not None or (self.cache is not None and key in self.cache):
            return True
        with suppress(OSError):
            return self.place.size(entry_file(key)) is not None
        return False

    def names(self) -> set[str]:
        """The names of all entries in files, as they are now.

        Raises:
            StoreError: the place cannot be looked into.
        """
        if self.place is None or self.index is None:
            return set(self._recent)
        try:
            self.index.refresh()
            return set(self.index.entries()) | set(self.loose())
        except OSError as error:
            raise StoreError(f"The feature store {self.where} cannot be read: {error}.") from error

    def loose(self) -> dict[str, int]:
        """Entries that lie in files of their own, with the bytes of those."""
        if self.place is None:
            return {}
        return {
            name.rpartition("/")[2].removesuffix(SUFFIX): size for name, size in self.place.names() if _is_entry(name)
        }

    def pack(self, keys: Iterable[str] | None = None, shard_bytes: int = SHARD_BYTES) -> int:
        """Put entries that lie in files of their own into shards, many to each. Returns how many shards were written.

        An entry is at every moment in one place or in both. Entries that are damaged stay where they are.

        Args:
            keys: names of entries; default: all.
            shard_bytes: a shard is closed when it has as many.

        Raises:
            StoreError: the place cannot be read or written.
        """
        place, index = self.place, self.index
        if place is None or index is None:
            return 0
        written = 0
        try:
            for batch in self._batches(self.loose() if keys is None else keys, shard_bytes):
                index.add(*write_shard(place, batch))
                for key in batch:
                    place.remove(entry_file(key))
                written += 1
            if written:
                index.write_manifest()
        except OSError as error:
            raise StoreError(
                f"The feature store {self.where} cannot be packed: {error}. No entry is lost: those that are in no "
                "shard lie in files of their own, and are read from there. Packing takes room for one shard, "
                f"{shard_bytes >> 20:,} MiB. Make room, or take smaller shards: vega3d store merge {self.where} "
                "--shard-mb 64"
            ) from error
        return written

    def _batches(self, keys: Iterable[str], limit: int) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Entries in files of their own, as many together as make a shard."""
        batch: dict[str, dict[str, Tensor]] = {}
        size = 0
        for key in sorted(keys):
            tensors = self._whole(key)
            if tensors is None:
                continue
            batch[key] = tensors
            size += sum(tensor.nbytes for tensor in tensors.values())
            if size >= limit:
                yield batch
                batch, size = {}, 0
        if batch:
            yield batch

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self

    def __reduce__(self) -> Any:
        source = self.folder if self.place is None or self.folder is not None else str(self.place)
        return type(self), (source, self.memory_bytes, str(self.form), self.cache_bytes)

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write an entry into a file of its own; where that cannot be done, it is told."""
        try:
            if self.folder is not None:
                path = self.folder / entry_file(key)
                if path.parent not in self._swept:
                    # Where versions before 0.1.0 wrote; what this one leaves is in the store's own folder.
                    self._swept.add(path.parent)
                    sweep(path.parent)
                write_entry(path, key, tensors, self.folder)
            elif self.place is not None:
                from safetensors.torch import save

                record = make_record(key, tensors)
                self.place.write(entry_file(key), save(tensors, record))
                if self.cache is not None:
                    self.cache.put(key, tensors, record)
        except (OSError, SafetensorError) as error:
            self._tell_not_kept(error)

    def _stored(self, key: str) -> Tensor | None:
        """An entry from files; None when it is not there or does not hold, which is told."""
        if self.place is None or self._memory_only:
            return None
        owner = self._owner_on_disk()
        dim = owner.get("feature_dim") if isinstance(owner.get("feature_dim"), int) else None
        recorded = owner.get("entries") == ENTRIES
        try:
            path = None if self.folder is None else self.folder / entry_file(key)
            if path is not None and path.is_file():
                return read_entry(path, key, dim, recorded)
            return self._from_cache(key) if self.folder is None else self._from_shards(key, dim)
        except FileNotFoundError:
            return None
        except (EntryError, OSError) as error:
            packed = None if self.index is None else self.index.get(key)
            self._tell_damaged(entry_file(key) if packed is None else packed.shard, str(error))
            return None

    def _from_shards(self, key: str, dim: int | None) -> Tensor | None:
        self._look()
        if self.place is None or self.index is None:
            return None
        for _ in range(2):
            packed = self.index.get(key)
            if packed is None:
                return None
            try:
                return checked_map(key, read_packed(self.place, packed), packed.record, dim, recorded=True)
            except FileNotFoundError:
                # Another process has put its entries into a shard of another name.
                self.index.refresh()
        return None

    def _from_cache(self, key: str) -> Tensor | None:
        """An entry of a store elsewhere, by way of this machine's disk."""
        kept = None if self.cache is None else self.cache.get(key)
        with suppress(EntryError):
            if kept is not None:
                return checked_map(key, *kept, None, recorded=True)
        problem: EntryError | None = None
        for found in self._from_afar(key):
            try:
                features = checked_map(key, *found, None, recorded=True)
            except EntryError as error:
                problem = problem or error
                continue
            if self.cache is not None:
                self.cache.put(key, *found)
            return features
        if problem is not None:
            raise problem
        return None

    def _from_afar(self, key: str) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """Tensors and record of an entry of a store elsewhere, unchecked: what replaced a damaged one comes later."""
        self._look()
        place, index = self.place, self.index
        if place is None or index is None:
            return
        tried = None
        for again in (False, True):
            packed = index.get(key)
            if packed is not None and packed is not tried:
                tried = packed
                with suppress(FileNotFoundError):
                    yield read_packed(place, packed), dict(packed.record)
            if again:
                return
            with suppress(FileNotFoundError):
                yield parse_entry(place.read(entry_file(key)))
            if packed is None:
                return
            # Another process may have put its entries into a shard of another name.
            index.refresh()

    def _look(self) -> None:
        """Look for shards, now and then: other writers make them."""
        now = time.monotonic()
        if self.index is None or (self._looked is not None and now - self._looked < _LOOK_AGAIN):
            return
        self._looked = now
        with suppress(OSError):
            self.index.refresh()
        for file, problem in self.index.damaged.items():
            self._tell_damaged(file, problem)

    def _whole(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry in a file of its own, if it holds."""
        place = self.place
        if place is None:
            return None
        try:
            found = (
                open_entry(self.folder / entry_file(key)) if self.folder else parse_entry(place.read(entry_file(key)))
            )
            check_entry(key, *found, None, recorded=True)
            return found[0]
        except (FileNotFoundError, EntryError):
            return None

    def _read_owner(self) -> dict[str, Any] | None:
        """What ``store.json`` says, or None without one."""
        if self.place is None:
            return None
        if self.folder is None:
            try:
                data = self.place.read(OWNER_FILE)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise StoreError(f"{self.where}/{OWNER_FILE} cannot be read: {error}.") from error
            if len(data) > _OWNER_BYTES:
                raise StoreError(f"{self.where}/{OWNER_FILE} has {len(data):,} bytes: it is no file of that kind.")
            self._found = parse_object(data, f"{self.where}/{OWNER_FILE}", StoreError)
            return self._found
        path = self.folder / OWNER_FILE
        if not path.exists():
            return None
        until = time.monotonic() + _BEING_WRITTEN
        while path.is_file() and path.stat().st_size == 0 and time.monotonic() < until:
            time.sleep(0.02)
        self._found = read_json(path, StoreError, limit=_OWNER_BYTES)
        return self._found

    def _owner_on_disk(self) -> dict[str, Any]:
        if self._found is None:
            with suppress(StoreError):
                self._read_owner()
        return self._found or {}

    def _claim(self, owner: dict[str, Any]) -> dict[str, Any]:
        """Write ``store.json``, unless another process does so first; returns what it says then."""
        if self.place is None:
            return owner
        claim = {**owner, "entries": ENTRIES}
        try:
            self.place.create(OWNER_FILE, json.dumps(claim, indent=2).encode())
        except FileExistsError:
            return self._read_owner() or claim
        except OSError as error:
            self._memory_only = True
            self._tell_not_kept(error)
        self._found = claim
        return claim

    def _tell_damaged(self, file: str, problem: str) -> None:
        self._tell(
            "damaged",
            f"The feature store's {self.where}/{file} is damaged: {problem}. These features are computed again and "
            "replaced, and so are all other damaged entries of this store; this warning appears once.",
        )

    def _tell_not_kept(self, error: Exception) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Make room on the disk" if full else "Give it a folder that can be written to"
        if self._must_keep:
            raise StoreError(
                f"Features cannot be kept in the feature store {self.where}: {error}. {advice}, and run the same "
                "command again: what is in it is not computed again."
            ) from error
        self._tell(
            "not kept",
            f"Features are not kept in the feature store {self.where}: {error}. They are used all the same, and will "
            f"be computed again in the next run. {advice}. This warning appears once.",
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


def entry_file(key: str) -> str:
    """The name of the file of an entry that has one of its own."""
    return f"{key[:2]}/{key}{SUFFIX}"


def _is_entry(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file.endswith(SUFFIX) and folder == file[:2] and folder != SHARDS


def dtype_key(key: str, dtype: torch.dtype | None) -> str:
    """A clip key that also tells the prior's compute dtype, which rounds features differently."""
    name = str(dtype).removeprefix("torch.")
    return key if name in ("None", "float32") else f"{key}-{name}"
