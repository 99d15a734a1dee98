"""Looking after a store: what it holds, whether all of it holds, clearing, combining and copying."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts.errors import StoreError
from .entries import FORMAT as ENTRIES
from .entries import EntryError, check_entry, open_entry
from .places import FolderPlace, RemotePlace
from .shards import MANIFEST, SHARD_BYTES, Packed, ShardIndex, parse_entry, read_packed, write_shard
from .store import OWNER_FILE, FeatureStore, entry_file

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[Collection[str]], Iterable[str]]
Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        where: folder or URL.
        owner: what ``store.json`` says: prior, feature dim, fingerprint.
        entries: how many, each counted once.
        kinds: entries by what their names say beside the clip: compute dtype, form.
        loose, loose_bytes: entries in files of their own.
        shards, shard_bytes: files with many entries.
        twice: entries that lie in several places.
        unreadable: shards whose header cannot be read, with the reason.
        leftovers: files and folders that killed writers left.
        manifest: whether there is one.
    """

    where: str
    owner: Mapping[str, Any]
    entries: int
    kinds: Mapping[str, int]
    loose: int
    loose_bytes: int
    shards: int
    shard_bytes: int
    twice: int
    unreadable: Mapping[str, str]
    leftovers: int
    manifest: bool


@dataclass
class Pruned:
    """What was removed, or would be.

    Attributes:
        damaged: entries that did not hold, with the reason.
        twice: copies of entries that lie elsewhere too.
        unwanted: entries that were not to be kept.
        leftovers: of killed writers.
        bytes: together, without leftovers.
    """

    damaged: dict[str, str] = field(default_factory=dict)
    twice: int = 0
    unwanted: int = 0
    leftovers: int = 0
    bytes: int = 0


def open_store(source: str | Path, *, cache_bytes: int | None = 0) -> FeatureStore:
    """A store that is there, to look after.

    Raises:
        StoreError: there is none.
    """
    store = FeatureStore(source, memory_bytes=0, cache_bytes=cache_bytes)
    if store.owner() is None:
        raise StoreError(
            f"{store.where} is no feature store: there is no {OWNER_FILE} in it. `vega3d extract` and "
            "vega3d.patch(model, store=...) make one."
        )
    return store


def describe(store: FeatureStore) -> StoreInfo:
    """Look at a store's files; no features are read.

    Raises:
        StoreError: it cannot be read.
    """
    place, index = _parts(store)
    names = store.names()
    loose, shards = store.loose(), index.shards()
    kinds: dict[str, int] = {}
    for name in names:
        kind = _kind(name)
        kinds[kind] = kinds.get(kind, 0) + 1
    sizes = dict(place.names("shards"))
    copies = len(loose) + sum(len(shard) for shard in shards.values())
    return StoreInfo(
        where=store.where,
        owner=dict(store.owner() or {}),
        entries=len(names),
        kinds=dict(sorted(kinds.items())),
        loose=len(loose),
        loose_bytes=sum(loose.values()),
        shards=len(shards),
        shard_bytes=sum(size for name, size in sizes.items() if name in shards),
        twice=copies - len(names),
        unreadable=dict(index.damaged),
        leftovers=len(place.leftovers()) if isinstance(place, FolderPlace) else 0,
        manifest=place.size(MANIFEST) is not None,
    )


def verify(store: FeatureStore, progress: Progress = iter) -> dict[str, str]:
    """Read every entry and compare it with its record.

    Returns:
        What does not hold, by its file (and its name, in a shard), with the reason.

    Raises:
        StoreError: the store cannot be read.
    """
    _, index = _parts(store)
    names = sorted(store.names())
    bad = dict(index.damaged)
    for name in progress(names):
        bad |= {where: problem for where, problem in _problems(store, name).items() if problem}
    return bad


def prune(
    store: FeatureStore, keep: Collection[str] | None = None, *, dry_run: bool = False, progress: Progress = iter
) -> Pruned:
    """Remove what does not hold, what lies there twice, what killed writers left, and what is not to be kept.

    Shards are never changed: what is to stay is written into new ones first.

    Args:
        keep: clip keys, or whole names of entries; everything else goes. Default: all are kept.
        dry_run: only tell.
        progress: wraps the names while they are read.

    Raises:
        StoreError: the store cannot be read or written.
    """
    place, index = _parts(store)
    found = Pruned()
    names = sorted(store.names())
    wanted = None if keep is None else set(keep)
    loose, shards = store.loose(), index.shards()
    drop: dict[str, set[str]] = {}
    gone: list[str] = []
    for name in progress(names):
        stays = wanted is None or name in wanted or name.partition(".")[0].partition("-")[0] in wanted
        copies = _problems(store, name) if stays else dict.fromkeys(_places(store, name), "")
        held = False
        for where, problem in copies.items():
            if stays and not problem and not held:
                held = True
                continue
            shard, _, _ = where.partition(": ")
            if shard == entry_file(name):
                gone.append(shard)
                found.bytes += loose.get(name, 0)
            else:
                drop.setdefault(shard, set()).add(name)
                found.bytes += shards[shard][name].bytes
            if problem:
                found.damaged[where] = problem
            elif stays:
                found.twice += 1
            else:
                found.unwanted += 1
    for shard in index.damaged:
        found.damaged[shard] = index.damaged[shard]
        gone.append(shard)
    found.leftovers = len(place.leftovers()) if isinstance(place, FolderPlace) else 0
    if dry_run:
        return found
    try:
        for shard, names_out in drop.items():
            _rewrite(place, index, [shard], leave_out=names_out)
        for file in gone:
            place.remove(file)
        place.sweep()
        _note(place, index)
    except OSError as error:
        raise StoreError(f"The feature store {store.where} cannot be written: {error}.") from error
    return found


def merge(store: FeatureStore, shard_bytes: int = SHARD_BYTES, progress: Progress = iter) -> int:
    """Combine entries in files of their own and small shards into full shards; returns how many were written.

    Raises:
        StoreError: the store cannot be read or written.
    """
    place, index = _parts(store)
    store.names()
    sizes = {name: sum(packed.bytes for packed in shard.values()) for name, shard in index.shards().items()}
    small = [name for name, size in sizes.items() if size < shard_bytes // 2]
    try:
        written = store.pack(progress(sorted(store.loose())), shard_bytes)
        if len(small) > 1:
            written += _rewrite(place, index, small, limit=shard_bytes)
        _note(place, index)
    except OSError as error:
        raise StoreError(f"The feature store {store.where} cannot be written: {error}.") from error
    return written


def copy(source: FeatureStore, target: FeatureStore, progress: Progress = iter, shard_bytes: int = SHARD_BYTES) -> int:
    """Copy the entries that the target lacks, into shards; returns how many. Each is checked on the way.

    Raises:
        StoreError: the target belongs to another prior, an entry does not hold, or a place cannot be read or written.
    """
    place, index = _parts(target)
    target.claim_as(source)
    have = target.names()
    missing = sorted(source.names() - have)
    batch: dict[str, Tensors] = {}
    size = 0
    try:
        for number, name in enumerate(progress(missing), 1):
            batch[name] = _held(source, name)
            size += sum(tensor.nbytes for tensor in batch[name].values())
            if size >= shard_bytes or number == len(missing):
                index.add(*write_shard(place, batch))
                batch, size = {}, 0
        _note(place, index)
    except OSError as error:
        raise StoreError(f"{target.where} cannot be written: {error}.") from error
    return len(missing)


def _rewrite(
    place: FolderPlace | RemotePlace,
    index: ShardIndex,
    shards: Collection[str],
    *,
    leave_out: Collection[str] = (),
    limit: int = SHARD_BYTES,
) -> int:
    """Put the entries of shards into new ones, then remove the old ones."""
    known = index.shards()
    entries = {name: packed for shard in shards for name, packed in known[shard].items() if name not in leave_out}
    batch: dict[str, Tensors] = {}
    size = written = 0
    for number, (name, packed) in enumerate(sorted(entries.items()), 1):
        tensors = _good(place, name, packed)
        if tensors is not None:
            batch[name] = tensors
            size += packed.bytes
        if batch and (size >= limit or number == len(entries)):
            index.add(*write_shard(place, batch))
            batch, size, written = {}, 0, written + 1
    index.drop(shards)
    for shard in shards:
        place.remove(shard)
    return written


def _good(place: FolderPlace | RemotePlace, name: str, packed: Packed) -> Tensors | None:
    """The tensors of an entry in a shard; None where they do not hold, or another process has moved them already."""
    try:
        tensors = read_packed(place, packed)
        check_entry(name, tensors, packed.record, None, recorded=True)
        return tensors
    except (EntryError, FileNotFoundError):
        return None


def _places(store: FeatureStore, name: str) -> list[str]:
    """Files in which an entry lies: its own first, since that replaces a damaged one in a shard."""
    place, index = _parts(store)
    own = [entry_file(name)] if place.size(entry_file(name)) is not None else []
    # In one order for all, or two processes that prune at once might each trust in the copy that the other removes.
    return [*own, *(f"{shard}: {name}" for shard, held in sorted(index.shards().items()) if name in held)]


def _problems(store: FeatureStore, name: str) -> dict[str, str]:
    """Each copy of an entry, with what is wrong with it; empty where it holds."""
    return {where: _problem(store, name, where) for where in _places(store, name)}


def _problem(store: FeatureStore, name: str, where: str) -> str:
    place, index = _parts(store)
    recorded = (store.owner() or {}).get("entries") == ENTRIES
    shard = where.partition(": ")[0]
    try:
        if shard == entry_file(name):
            found = open_entry(store.folder / shard) if store.folder is not None else parse_entry(place.read(shard))
            check_entry(name, *found, None, recorded=recorded)
        else:
            packed = index.shards()[shard][name]
            check_entry(name, read_packed(place, packed), packed.record, None, recorded=True)
    except (EntryError, OSError) as error:
        return str(error)
    return ""


def _held(store: FeatureStore, name: str) -> Tensors:
    place, index = _parts(store)
    problems = []
    for where in _places(store, name):
        problem = _problem(store, name, where)
        if problem:
            problems.append(f"{where}: {problem}")
            continue
        shard = where.partition(": ")[0]
        if shard != entry_file(name):
            return read_packed(place, index.shards()[shard][name])
        return (open_entry(store.folder / shard) if store.folder is not None else parse_entry(place.read(shard)))[0]
    raise StoreError(
        f"The entry {name} of {store.where} does not hold: {'; '.join(problems) or 'it is gone'}. `vega3d store prune` "
        "removes what does not hold."
    )


def _parts(store: FeatureStore) -> tuple[FolderPlace | RemotePlace, ShardIndex]:
    if store.place is None or store.index is None:
        raise StoreError("A store in memory has no files to look after.")
    return store.place, store.index


def _note(place: FolderPlace | RemotePlace, index: ShardIndex) -> None:
    """Write the manifest where there are shards, or bring the one that is there up to date."""
    if index.shards() or place.size(MANIFEST) is not None:
        index.write_manifest()


def _kind(name: str) -> str:
    """What an entry's name says beside the clip."""
    key, _, form = name.partition(".")
    dtype = key.partition("-")[2] or "float32"
    words: Iterator[str] = iter(form.split(".")) if form else iter(())
    parts = [part.partition("_")[0] for part in words]
    return (
        f"computed in {dtype}, {'-'.join(parts) if parts and parts[0] == 'aligned' else '-'.join(['native', *parts])}"
    )


__all__ = ["Pruned", "StoreInfo", "copy", "describe", "merge", "open_store", "prune", "verify"]
