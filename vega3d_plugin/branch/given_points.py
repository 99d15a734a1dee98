"""World points that a call of the host was given beside its pixels, held while it runs."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from types import FrameType
from typing import NamedTuple

from torch import Tensor

from .blocks import open_blocks
from .calls import BranchKey, module_frame, running_frames


class _Given(NamedTuple):
    key: weakref.ref[BranchKey]
    frame: FrameType | None
    points: Tensor


# Tuples, as those of calls.
_GIVEN: ContextVar[tuple[_Given, ...]] = ContextVar("vega3d_given_points", default=())


def give(key: BranchKey, points: Tensor) -> None:
    """Hold the points of the forward that called this hook, until it ends."""
    _GIVEN.set((*_running(), _Given(weakref.ref(key), module_frame(), points)))


def given(key: BranchKey) -> Tensor | None:
    """The points of the innermost forward that runs, else those of the method of the host that does."""
    own = [g.points for g in _running() if g.key() is key]
    blocks = [b.value for b in open_blocks(key) if b.kind == "points"]
    return next(reversed([*blocks, *own]), None)


def drop() -> None:
    """The forward that called this hook has ended."""
    if _GIVEN.get():
        ended = module_frame()
        _GIVEN.set(tuple(g for g in _running() if g.frame is not ended))


def _running() -> tuple[_Given, ...]:
    """Those of forwards that have not ended. One that was interrupted (Ctrl-C) was never told that it ended."""
    held = _GIVEN.get()
    running = running_frames() if held else set()
    return tuple(g for g in held if g.frame in running)
