"""What ``with`` blocks ask of a branch, or tell it, while they are open: switched off, zeroed, its shares recorded.

A block acts on calls in its own thread (or asyncio task) alone, so a server may compute one answer without the branch
while other threads compute theirs with it. Blocks may overlap, nest, and end in any order: each ends itself and no
other.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from ..contracts.clips import Clip
from ..contracts.shares import Shares
from .calls import BranchKey

Kind = Literal["disabled", "zeroed", "shares", "told", "asked", "points"]
SWITCHES = ("disabled", "zeroed")
#: Receives clips and, for each, the shares of its tokens, in maps ``[t, h, w]``.
Recorder = Callable[[Sequence[Clip], Sequence[Shares]], None]


@dataclass(eq=False)
class Block:
    """One open ``with`` block.

    Attributes:
        key: of the branch.
        kind: what it asks for.
        recorder: where shares go.
        value: what it tells.
        is_open: False once it has ended, also for contexts that were copied while it was open.
    """

    key: weakref.ref[BranchKey]
    kind: Kind
    recorder: Recorder | None = None
    value: Any = None
    is_open: bool = True


_OWN: ContextVar[tuple[Block, ...]] = ContextVar("vega3d_blocks", default=())
_lock = threading.Lock()
# Those of all threads. Replaced, never changed, so that it is read without the lock.
_shared: tuple[Block, ...] = ()


@contextmanager
def block(
    key: BranchKey, kind: Kind, recorder: Recorder | None = None, *, value: Any = None, all_threads: bool = False
) -> Iterator[None]:
    """Open a block: for calls in this thread, or for those in all threads."""
    global _shared
    new = Block(weakref.ref(key), kind, recorder, value)
    if all_threads:
        with _lock:
            _shared = (*_shared, new)
    else:
        _OWN.set((*_OWN.get(), new))
    try:
        yield
    finally:
        new.is_open = False
        with _lock:
            _shared = tuple(b for b in _shared if b.is_open)
        # It may end in another context than it began in.
        _OWN.set(tuple(b for b in _OWN.get() if b.is_open))


def open_blocks(key: BranchKey) -> list[Block]:
    """The blocks that a call of this branch in this thread has to heed, the outermost first."""
    return [b for b in (*_shared, *_OWN.get()) if b.is_open and b.key() is key]


def switches(key: BranchKey) -> frozenset[str]:
    """Those of ``disabled`` and ``zeroed`` that are on."""
    return frozenset(b.kind for b in open_blocks(key) if b.kind in SWITCHES)
