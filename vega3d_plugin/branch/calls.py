"""The state of one forward of a host, handed from hook to hook.

Hooks hold strings only, so the state travels in a context variable: every thread and every asyncio task has its own.
It is begun before the host's forward, found again by the hooks inside it, and gone when the forward ends, whether it
returned or raised. A host may also encode pictures before its forward begins, as some do in ``generate``. This is an
early call, which the next forward in the same thread continues.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .shown import Shown


class BranchKey:
    """What the state of a branch's calls is filed under: DataParallel's replicas share it, copies have their own.

    Attributes:
        trained_with: the sets of switches under which tokens were fused in training, see :mod:`.blocks`.
    """

    def __init__(self) -> None:
        self.trained_with: set[frozenset[str]] = set()

    def __reduce__(self) -> Any:
        return BranchKey, ()


@dataclass(eq=False)
class HostCall:
    """What hooks know of one forward of a host.

    Attributes:
        key: whose call it is.
        frame: of the stack, in which the forward runs; None outside of any forward.
        fired: how often the seam has fused tokens.
        joined: images were made the views of one scene before it was known which prompts they belong to.
        shown: the prompts, and which pictures belong to which, where that matters.
        notes: what the reader noted on the way to the seam.
        notes_last: the notes outlast the next fusion.
        left_out: which noted pixels no point has fused, to be said when the forward ends.
        is_continued: it began before the forward, when pictures were encoded.
        is_over: the forward has ended.
        is_replay: no forward at all: a checkpointed part is computed again in the backward pass.
    """

    key: weakref.ref[BranchKey]
    frame: FrameType | None = None
    fired: int = 0
    joined: bool = False
    shown: Shown | None = None
    notes: Any = None
    notes_last: bool = False
    left_out: str = ""
    is_continued: bool = False
    is_over: bool = False
    is_replay: bool = False

    def close(self) -> None:
        """Let go of pixels, whoever still holds this call."""
        self.is_over, self.frame, self.shown, self.notes = True, None, None, None


# Tuples, not lists: a copied context (asyncio.to_thread) must not see what is begun in another.
_OPEN: ContextVar[tuple[HostCall, ...]] = ContextVar("vega3d_open_calls", default=())
_EARLY: ContextVar[tuple[HostCall, ...]] = ContextVar("vega3d_early_calls", default=())
# What a host encoded before its forward and may hand to every step of `generate`, not held.
_ENCODED: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar("vega3d_encoded", default=())


def begin(key: BranchKey, *, encodes: bool) -> HostCall:
    """A forward of the host begins.

    Args:
        key: of the branch.
        encodes: it is given pixels, or what was encoded of them; else it does not continue an early call.
    """
    call, early = HostCall(weakref.ref(key)), _take_early(key)
    if early is not None and encodes:
        call, early.is_continued = early, True
    elif early is not None:
        # A host may encode in `generate` and hand on embeddings alone.
        call.left_out = early.left_out
    call.frame = module_frame()
    _OPEN.set((*_still_open(), call))
    return call


def end(key: BranchKey, *, raised: bool) -> HostCall | None:
    """A forward of the host has ended; its call, or None where none had begun."""
    stack = _still_open()
    ended = [c for c in _OPEN.get() if c not in stack] if raised else list(stack)
    call = next((c for c in reversed(ended) if c.key() is key), None)
    _OPEN.set(tuple(c for c in stack if c is not call))
    if call is not None:
        call.close()
    if call is not None and raised:
        # For those who look at `branch.fired`; the next forward takes no notice of it.
        _EARLY.set((*_others(key), call))
    return call


def current(key: BranchKey) -> HostCall:
    """The forward that runs in this thread, the innermost of several; outside of any, the early call."""
    call = next((c for c in reversed(_still_open()) if c.key() is key), None)
    if call is not None:
        return call
    if _in_backward():
        return HostCall(weakref.ref(key), is_replay=True)
    early = next((c for c in _EARLY.get() if c.key() is key and not c.is_over), None)
    if early is None:
        early = HostCall(weakref.ref(key))
        _EARLY.set((*_others(key), early))
    return early


@contextmanager
def noting(call: HostCall, notes: Any) -> Iterator[None]:
    """Within it, hooks find this call, and the call has these notes."""
    before = call.notes, call.notes_last
    call.notes, call.notes_last = notes, True
    if call.is_replay:
        _OPEN.set((*_OPEN.get(), call))
    try:
        yield
    finally:
        call.notes, call.notes_last = before
        if call.is_replay:
            _OPEN.set(tuple(c for c in _OPEN.get() if c is not call))


def note_encoded(given: Any) -> None:
    """What was encoded before a forward, and fused: pictures that another forward is given need not be fused again."""
    still = tuple(ref for ref in _ENCODED.get() if ref() is not None)
    _ENCODED.set((*still, *(weakref.ref(part) for part in _parts(given))))


def is_encoded(given: Any) -> bool:
    """True where all of it was encoded before a forward in this thread, and fused."""
    known, parts = {id(ref()) for ref in _ENCODED.get()}, _parts(given)
    return bool(parts) and all(id(part) in known for part in parts)


def _parts(given: Any) -> list[Any]:
    """What encoded pictures are made of: tensors or outputs, by kind."""
    values = list(given.values()) if type(given) is dict else [given]
    return [value for value in values if getattr(type(value), "__weakrefoffset__", 0)]


def fired(key: BranchKey) -> int:
    """How often the seam has fused tokens in this thread since a forward of the host last returned."""
    return next((c.fired for c in (*reversed(_still_open()), *_EARLY.get()) if c.key() is key), 0)


def _take_early(key: BranchKey) -> HostCall | None:
    early = next((c for c in _EARLY.get() if c.key() is key), None)
    if early is None:
        return None
    _EARLY.set(_others(key))
    # In a copied context, another forward may have continued it.
    return None if early.is_over or early.frame is not None else early


def _others(key: BranchKey) -> tuple[HostCall, ...]:
    """Early calls of other branches that are still there."""
    return tuple(c for c in _EARLY.get() if c.key() not in (None, key))


def _still_open() -> tuple[HostCall, ...]:
    """Calls that have begun and not ended. One that was interrupted (Ctrl-C) was never told that it ended."""
    calls = _OPEN.get()
    if not calls:
        return calls
    running = running_frames()
    return tuple(c for c in calls if not c.is_over and (c.frame is None or c.frame in running))


def running_frames() -> set[FrameType]:
    """The frames of this thread's stack."""
    running, frame = set(), sys._getframe(1)
    while frame is not None:
        running.add(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return running


def module_frame() -> FrameType | None:
    """The frame of torch that called the hook; what runs in this forward has it below itself on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.nn.modules.module":
        frame = frame.f_back
    return frame


def _in_backward() -> bool:
    """True where autograd runs this code."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1
