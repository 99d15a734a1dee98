"""The shard function: the clips of some units into a store. Every launcher runs it, each worker on units of its own.

A unit is what holds clips and is decoded at once: a video, or the pictures of a prompt. Workers share nothing but the
store, whose entries are whole or not there. So a worker may die at any moment; another one, or the next run, finds what
it has stored and loses the clip that it was working on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...contracts.clips import Clip
from ...contracts.documents import DocumentError, parse_json
from ...contracts.errors import FramesError, StoreError, Vega3dError
from ..shards import SHARD_BYTES
from ..store import FeatureStore

#: Where a store says which entries a unit has, so that another run need not decode it to find out.
FOUND = "extracted"
#: Units that are decoded before they are needed.
AHEAD = 2
#: Seconds after which what was found is noted again, so that a killed run need not decode it once more.
NOTE_EVERY = 30.0


class Units(Protocol):
    """What is to be extracted. Picklable, and cheap to pickle."""

    def __len__(self) -> int:
        """How many."""
        ...

    def key(self, unit: int) -> str:
        """Names a unit by all that its clips depend on, its files' sizes and times too.

        Empty where that cannot be told: then it is decoded in every run, to find out what is there.
        """
        ...

    def label(self, unit: int) -> str:
        """What to call a unit in a message."""
        ...

    def store(self) -> FeatureStore:
        """The store that they go to."""
        ...

    def open(self) -> Opened:
        """Load what it takes to see the clips, and the prior. Called once in each worker."""
        ...


class Opened(Protocol):
    """Units in a worker."""

    store: FeatureStore

    def clips(self, unit: int) -> list[Clip]:
        """The clips of a unit. Raises :class:`Vega3dError` for one that cannot be used. Called from another thread."""
        ...

    def name(self, clip: Clip) -> str:
        """The name of a clip's entry."""
        ...

    def keep(self, clip: Clip) -> None:
        """Compute the features of a clip and put them into the store."""
        ...


@dataclass(frozen=True)
class Done:
    """What became of a unit.

    Attributes:
        unit: its label.
        key: see :meth:`Units.key`.
        names: of its entries.
        made: how many of them were computed now.
        bytes: of the features that were computed.
        seconds: that the prior took for them.
        error: why it could not be used; else empty.
    """

    unit: str
    key: str = ""
    names: tuple[str, ...] = ()
    made: int = 0
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass
class Tally:
    """What a run did: sums over :class:`Done`.

    Attributes:
        units, clips, made, bytes, seconds: see there; each clip is counted once.
        bad: units that could not be used, with the reason.
    """

    units: int = 0
    made: int = 0
    bytes: int = 0
    seconds: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def add(self, done: Done) -> None:
        """Count a unit."""
        self.units += 1
        self.names.update(done.names)
        self.made += done.made
        self.bytes += done.bytes
        self.seconds += done.seconds
        if done.error:
            self.bad[done.unit] = done.error

    @property
    def clips(self) -> int:
        """Distinct clips that were seen."""
        return len(self.names)


class Worker:
    """Extracts units, one after the other.

    Args:
        units: all of them.
        shard_bytes: entries are packed into shards of that size; 0: each stays in a file of its own.
    """

    def __init__(self, units: Units, shard_bytes: int = SHARD_BYTES) -> None:
        self.units, self.shard_bytes = units, shard_bytes
        self.opened = units.open()
        self.store = self.opened.store
        self.store.require_keeping()
        self.have = self.store.names()
        self.journal = Journal(self.store)
        self._waiting: list[str] = []
        self._bytes = 0

    def run(self, units: Iterable[int]) -> Iterator[Done]:
        """Extract units in this order; the next ones are decoded meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="vega3d-clips") as pool, self.store.writing_behind():
            ahead: deque[tuple[int, Future[list[Clip]]]] = deque()
            for unit in units:
                known = self._known(unit)
                if known is not None:
                    yield known
                    continue
                ahead.append((unit, pool.submit(self.opened.clips, unit)))
                if len(ahead) > AHEAD:
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())

    def pack(self) -> None:
        """Put what was made into shards."""
        if self.shard_bytes and self._waiting:
            self.store.flush()
            self.store.pack(self._waiting, self.shard_bytes)
            self._waiting, self._bytes = [], 0

    def _known(self, unit: int) -> Done | None:
        """A unit whose entries are all there, as an earlier run noted; None when it is to be looked at."""
        key = self.units.key(unit)
        names = self.journal.names(key) if key else None
        if names is None or not self.have.issuperset(names):
            return None
        return Done(self.units.label(unit), key, tuple(names))

    def _finish(self, unit: int, clips: Future[list[Clip]]) -> Done:
        label, key = self.units.label(unit), self.units.key(unit)
        try:
            found = clips.result()
        except Vega3dError as error:
            return Done(label, key, error=str(error))
        names, made, size, seconds = [], 0, 0, 0.0
        for clip in found:
            name = self.opened.name(clip)
            names.append(name)
            if name in self.have:
                continue
            begun = time.perf_counter()
            try:
                self.opened.keep(clip)
            except FramesError as error:
                return Done(label, key, tuple(names[:-1]), made, size, seconds, str(error))
            seconds += time.perf_counter() - begun
            made += 1
            size += self.store.last_bytes
            self.have.add(name)
            self._waiting.append(name)
        self._bytes += size
        if self._bytes >= self.shard_bytes:
            self.pack()
        return Done(label, key, tuple(dict.fromkeys(names)), made, size, seconds)


class Journal:
    """Which entries a unit has, written beside them. Each writer has a file of its own; one that is damaged is ignored.

    Args:
        store: where it lies.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.place = store.place
        self._known: dict[str, list[str]] = {}
        self._new: dict[str, list[str]] = {}
        self._file = f"{FOUND}/{secrets.token_hex(8)}.json"
        if self.place is not None:
            with suppress(OSError):
                for name, _ in list(self.place.names(FOUND)):
                    self._known |= self._read(name)

    def names(self, key: str) -> list[str] | None:
        """The names of a unit's entries; None where nobody has noted them."""
        return self._known.get(key)

    def add(self, key: str, names: Collection[str]) -> None:
        """Note the entries of a unit."""
        if self._known.get(key) != list(names):
            self._known[key] = self._new[key] = list(names)

    def write(self) -> None:
        """Write what is new. A place that cannot be written to is told by the store."""
        if self.place is not None and self._new:
            with suppress(OSError):
                self.place.write(self._file, json.dumps(self._new, separators=(",", ":")).encode())

    def _read(self, name: str) -> dict[str, list[str]]:
        with suppress(OSError, DocumentError):
            found = parse_json(self.place.read(name)) if self.place is not None else None
            if isinstance(found, dict):
                return {key: names for key, names in found.items() if _is_names(names)}
        return {}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def share(units: Units, rank: int, world: int) -> list[int]:
    """The units of one of ``world`` workers: by their keys, so that every rank finds its own without asking.

    Raises:
        StoreError: no such rank.
    """
    if not 0 <= rank < world:
        raise StoreError(f"There is no rank {rank} of {world}.")
    return [unit for unit in range(len(units)) if int(digest(units.key(unit) or str(unit)), 16) % world == rank]


def digest(text: str) -> str:
    """32 hex digits of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def extract_shard(
    units: Units,
    *,
    rank: int = 0,
    world: int = 1,
    shard_bytes: int = SHARD_BYTES,
    told: Callable[[Done], None] = lambda done: None,
) -> Tally:
    """Extract the units of one rank into the store.

    Args:
        units: all units, the same in every rank.
        rank: of this worker, from 0.
        world: workers.
        shard_bytes: see :class:`Worker`.
        told: called after every unit.

    Raises:
        StoreError: the store belongs to another prior, or cannot be read.
        PriorError, HostError: the prior or the host cannot be loaded.
    """
    worker = Worker(units, shard_bytes)
    count = Counter(worker.journal, told)
    try:
        for done in worker.run(share(units, rank, world)):
            count(done)
    finally:
        worker.pack()
        worker.journal.write()
    return count.tally


class Counter:
    """Counts what is done, tells it, and notes it in the store now and then."""

    def __init__(self, journal: Journal, told: Callable[[Done], None]) -> None:
        self.journal, self.told, self.tally = journal, told, Tally()
        self._written = time.monotonic()

    def __call__(self, done: Done) -> None:
        """Count a unit."""
        self.tally.add(done)
        if not done.error and done.key:
            self.journal.add(done.key, done.names)
        if time.monotonic() - self._written > NOTE_EVERY:
            self.journal.write()
            self._written = time.monotonic()
        self.told(done)
