"""The state of one forward: found by the hooks inside it, by nobody else, and gone afterwards."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vega3d_plugin.branch import calls
from vega3d_plugin.branch.calls import BranchKey, HostCall


class Forward(nn.Module):
    """A module whose forward is a call, and does what it is given to do inside."""

    def __init__(self, key: BranchKey, encodes: bool = True) -> None:
        super().__init__()
        self.key, self.encodes, self.ended = key, encodes, False
        self.register_forward_pre_hook(self._before)
        self.register_forward_hook(self._after, always_call=True)

    def forward(self, inside: Callable[[], Any]) -> Any:
        return inside()

    def _before(self, module: nn.Module, args: Any) -> None:
        calls.begin(self.key, encodes=self.encodes)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.ended = calls.end(self.key, raised=output is None) is not None


@pytest.fixture
def key() -> BranchKey:
    return BranchKey()


@pytest.fixture
def forward(key: BranchKey) -> Forward:
    return Forward(key)


def test_hooks_of_one_forward_share_one_call(forward: Forward, key: BranchKey) -> None:
    first, second = forward(lambda: (calls.current(key), calls.current(key)))
    assert first is second
    assert forward.ended
    assert forward(lambda: (calls.current(key),))[0] is not first


def test_a_forward_inside_another_has_its_own_call(forward: Forward, key: BranchKey) -> None:
    inner = Forward(key)
    before, within, after = forward(
        lambda: (calls.current(key), inner(lambda: (calls.current(key),))[0], calls.current(key))
    )
    assert before is after
    assert within is not before


def test_another_branch_has_its_own_call(forward: Forward, key: BranchKey) -> None:
    other = BranchKey()
    mine, theirs = forward(lambda: (calls.current(key), Forward(other)(lambda: (calls.current(other),))[0]))
    assert mine is not theirs
    assert mine.key() is key


def test_each_thread_has_its_own(forward: Forward, key: BranchKey) -> None:
    found: list[HostCall] = []

    def inside() -> tuple[HostCall]:
        thread = threading.Thread(target=lambda: found.append(calls.current(key)))
        thread.start()
        thread.join()
        return (calls.current(key),)

    assert forward(inside)[0] is not found[0]


def test_each_task_has_its_own(key: BranchKey) -> None:
    """Tasks copy the context that they begin in, and `to_thread` hands the copy to a thread."""

    async def answer() -> tuple[HostCall, HostCall]:
        early = calls.current(key)
        await asyncio.sleep(0)
        return early, (await asyncio.to_thread(Forward(key), lambda: (calls.current(key),)))[0]

    async def both() -> list[tuple[HostCall, HostCall]]:
        return list(await asyncio.gather(answer(), answer()))

    (early, late), (other_early, other_late) = asyncio.run(both())
    assert early is late
    assert other_early is other_late
    assert late is not other_late


def test_what_was_encoded_before_is_continued(forward: Forward, key: BranchKey) -> None:
    early = calls.current(key)
    early.fired = 2
    assert forward(lambda: (calls.current(key),))[0] is early
    assert calls.fired(key) == 0


def test_words_alone_do_not_continue_it(key: BranchKey) -> None:
    early = calls.current(key)
    early.fired, early.left_out = 2, "one image"
    call = Forward(key, encodes=False)(lambda: (calls.current(key),))[0]
    # What was left out is said by the next forward, which is the first of `generate`.
    assert (call.fired, call.left_out) == (0, "one image")
    assert calls.current(key).fired == 0


def test_another_context_cannot_continue_it_a_second_time(forward: Forward, key: BranchKey) -> None:
    import contextvars

    calls.current(key).fired = 1
    copied = contextvars.copy_context()
    assert copied.run(forward, lambda: (calls.current(key).fired,)) == (1,)
    assert forward(lambda: (calls.current(key).fired,)) == (0,)


class GiveUpError(RuntimeError):
    pass


@pytest.mark.parametrize("error", [GiveUpError, KeyboardInterrupt])
def test_a_call_that_broke_off_is_not_found_again(forward: Forward, key: BranchKey, error: type[BaseException]) -> None:
    def inside() -> None:
        calls.current(key).fired = 1
        calls.current(key).shown = "not mine"  # type: ignore[assignment]
        raise error

    for find in (lambda: calls.current(key), lambda: forward(lambda: (calls.current(key),))[0]):
        with pytest.raises(error):
            forward(inside)
        found = find()
        assert (found.fired, found.shown) == (0, None)


def test_a_broken_call_inside_leaves_the_outer_one(forward: Forward, key: BranchKey) -> None:
    inner = Forward(key)

    def fail() -> None:
        raise GiveUpError

    def inside() -> tuple[HostCall, HostCall]:
        before = calls.current(key)
        with pytest.raises(GiveUpError):
            inner(fail)
        return before, calls.current(key)

    before, after = forward(inside)
    assert before is after


@pytest.mark.parametrize("error", [None, GiveUpError, KeyboardInterrupt])
def test_nothing_is_kept(forward: Forward, key: BranchKey, error: type[BaseException] | None) -> None:
    def inside(pixels: Tensor) -> tuple[int]:
        call = calls.current(key)
        call.notes, call.shown = pixels, pixels  # type: ignore[assignment]
        if error is not None:
            raise error
        return (1,)

    def run() -> weakref.ref[Tensor]:
        pixels = torch.zeros(3)
        with suppress(GiveUpError, KeyboardInterrupt):
            forward(lambda: inside(pixels))
        return weakref.ref(pixels)

    pixels = run()
    if error is KeyboardInterrupt:
        # Nobody tells torch's hooks of it; the next call notices.
        forward(lambda: (1,))
    gc.collect()
    assert pixels() is None


def test_notes_are_those_of_the_method_that_runs(forward: Forward, key: BranchKey) -> None:
    def notes() -> Any:
        return calls.current(key).notes

    def inside() -> tuple[Any, ...]:
        call, found = calls.current(key), [notes()]
        with calls.noting(call, "outer"):
            found.append(notes())
            with calls.noting(call, "inner"):
                found.append(notes())
            found.append(notes())
        return (*found, notes())

    assert forward(inside) == (None, "outer", "inner", "outer", None)
    with calls.noting(calls.current(key), "early"):
        assert notes() == "early"
    assert notes() is None


class InBackward(torch.autograd.Function):
    """Runs something in the backward pass, as gradient checkpointing does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[], None]) -> Tensor:
        ctx.run = run
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.run()
        return grad, None


def test_the_backward_pass_has_a_call_that_nobody_continues(key: BranchKey) -> None:
    found: list[HostCall] = []

    def run() -> None:
        call = calls.current(key)
        found.append(call)
        call.fired = 5
        with calls.noting(call, "pixels"):
            found.append(calls.current(key))

    InBackward.apply(torch.zeros(1, requires_grad=True), run).backward()
    assert found[0] is found[1]
    assert found[0].is_replay
    assert calls.fired(key) == 0
    assert not calls.current(key).is_replay


def test_copies_of_a_branch_have_calls_of_their_own(key: BranchKey) -> None:
    assert copy.deepcopy(key) is not key
    assert isinstance(pickle.loads(pickle.dumps(key)), BranchKey)
