"""Blocks that switch a branch off or look inside it: for the calls that they are meant for, however they overlap."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from support.together import outcomes, together
from torch import Tensor, nn

import vega3d
from vega3d_plugin.branch.branch import GenerativeBranch
from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.seams import Seam
from vega3d_plugin.contracts.settings import BranchSettings

SIZE = 8


class Plain(vega3d.Prior):
    """The frames' own colours."""

    feature_dim, fingerprint = 3, "plain"

    def __call__(self, frames: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(frames, (4, 6))


class Home(nn.Module):
    """What a patched model looks like to the switches."""

    def __init__(self) -> None:
        super().__init__()
        half = PixelStatistics((0.5,) * 3, (0.5,) * 3)
        seam = Seam("", "", SIZE, 1, half, "family", reader=None)  # type: ignore[arg-type]
        settings = BranchSettings.parse(
            {"prior": {"name": "tiny-wan"}, "fusion": {"init": "released"}, "projector": {"hidden_dim": 16}}
        )
        self.vega3d = GenerativeBranch(settings, Plain(), seam, "none")

    def forward(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        clip = vega3d.Clip(torch.rand(1, 3, 32, 48, generator=generator), vega3d.TokenGrid(1, 2, 3), "image")
        tokens: Tensor = self.vega3d(torch.rand(6, SIZE, generator=generator), [clip])
        return tokens


@pytest.fixture
def model() -> Home:
    torch.manual_seed(0)
    return Home().eval().requires_grad_(False)


@pytest.fixture
def on(model: Home) -> Tensor:
    return model()


@pytest.fixture(params=["disabled", "zeroed"])
def switch(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[None]]:
    found: Callable[..., AbstractContextManager[None]] = getattr(vega3d, request.param)
    return found


@pytest.fixture
def off(model: Home, on: Tensor, switch: Any) -> Tensor:
    with switch(model):
        found = model()
    assert not torch.equal(found, on)
    return found


def test_blocks_that_end_in_another_order(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    first, second = switch(model), switch(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(), off)
    second.__exit__(None, None, None)
    assert torch.equal(model(), on)


def test_blocks_of_threads_that_overlap(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    """Each thread leaves after the other has come, and before it goes."""
    step = threading.Barrier(2, timeout=30)

    def first() -> list[Tensor]:
        with switch(model):
            step.wait()
            step.wait()
            within = model()
        step.wait()
        return [within, model()]

    def second() -> list[Tensor]:
        step.wait()
        before = model()
        with switch(model):
            step.wait()
            step.wait()
            within = model()
        return [before, within, model()]

    (in_first, after_first), (before, within, after) = together(first, second)
    assert torch.equal(in_first, off)
    assert torch.equal(within, off)
    assert all(torch.equal(out, on) for out in (after_first, before, after, model()))


def test_many_threads(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    def switched() -> bool:
        for _ in range(40):
            with switch(model), vega3d.record_gates(model) as gates:
                if not torch.equal(model(), off) or len(gates) != (switch is vega3d.zeroed):
                    return False
        return True

    def plain() -> bool:
        return all(torch.equal(model(), on) for _ in range(40))

    assert together(switched, plain, switched, plain) == [True] * 4


def test_all_threads(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    """Threads that begin inside the block are in it only when it is asked for; the last block to end switches on."""
    with switch(model):
        assert torch.equal(together(model)[0], on)
    with switch(model, all_threads=True):
        with switch(model, all_threads=True):
            pass
        assert torch.equal(together(model)[0], off)
        assert torch.equal(model(), off)
    assert torch.equal(together(model)[0], on)


def test_a_block_ends_when_it_raises(model: Home, on: Tensor, switch: Any) -> None:
    for everywhere in (False, True):
        with pytest.raises(KeyError), switch(model, all_threads=everywhere):
            raise KeyError
        assert torch.equal(model(), on)


def test_a_block_that_ends_in_another_thread(model: Home, on: Tensor, switch: Any) -> None:
    """As an exit stack that a server closes."""
    stack = ExitStack()
    stack.enter_context(switch(model))
    together(stack.close)
    assert torch.equal(model(), on)


def test_a_copied_context_is_in_the_block_as_long_as_it_lasts(
    model: Home, on: Tensor, off: Tensor, switch: Any
) -> None:
    with switch(model):
        copied = contextvars.copy_context()
        assert torch.equal(together(lambda: copied.run(model))[0], off)
    assert torch.equal(together(lambda: copied.run(model))[0], on)


def test_tasks(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    async def switched() -> Tensor:
        with switch(model):
            await asyncio.sleep(0)
            return await asyncio.to_thread(model)

    async def plain() -> Tensor:
        await asyncio.sleep(0)
        return await asyncio.to_thread(model)

    async def both() -> list[Tensor]:
        return list(await asyncio.gather(switched(), plain(), switched()))

    found = asyncio.run(both())
    assert [torch.equal(out, off) for out in found] == [True, False, True]
    assert torch.equal(found[1], on)


def test_generators_that_hold_a_block_open(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    def holding() -> Iterator[Tensor]:
        with switch(model):
            while True:
                yield model()

    generators = [holding(), holding()]
    assert all(torch.equal(next(g), off) for g in generators)
    for g in generators:
        g.close()
    assert torch.equal(model(), on)


def test_a_copy_of_the_model_is_not_switched(model: Home, on: Tensor, off: Tensor, switch: Any) -> None:
    with switch(model):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(), on)
        # DataParallel's replicas share the dictionary.
        replica = copy.copy(model)
        replica._modules = {"vega3d": model.vega3d._replicate_for_data_parallel()}
        replica.vega3d._parameters, replica.vega3d._modules = model.vega3d._parameters, model.vega3d._modules
        assert torch.equal(replica(), off)


def test_the_whole_model_until_it_is_set_back(model: Home, on: Tensor) -> None:
    branch = model.vega3d
    for name, value in (("enabled", False), ("zeroed", True)):
        before = getattr(branch, name)
        setattr(branch, name, value)
        assert not torch.equal(together(model)[0], on)
        setattr(branch, name, before)
        assert torch.equal(together(model)[0], on)


def test_recordings_inside_each_other(model: Home) -> None:
    with vega3d.record_gates(model) as outer:
        model()
        with vega3d.record_gates(model) as inner:
            model()
        model()
    model()
    assert (len(outer), len(inner)) == (3, 1)
    assert torch.equal(outer[1], inner[0])


def test_shares_and_gates_of_the_same_call(model: Home) -> None:
    with vega3d.record_gates(model) as gates, vega3d.record_shares(model) as shares:
        model()
    (gate,), (share,) = gates, shares
    assert gates.shares[0].gate is gate
    assert share.generative is not None
    assert gate.shape == share.generative.shape == share.change.shape == (1, 2, 3)
    torch.testing.assert_close(share.generative, 0.2 * (1 - gate))
    assert share.scale == pytest.approx(0.2)


def test_a_fresh_patch_is_the_host_alone(model: Home) -> None:
    with torch.no_grad():
        model.vega3d.fuser.make_identity()
    with vega3d.record_shares(model) as shares:
        model()
    assert bool((shares[0].host == 1).all())
    assert bool((shares[0].change == 0).all())


def test_a_fuser_without_a_gate_has_shares(model: Home) -> None:
    model.vega3d.fuser = vega3d.build_fuser("add", SIZE)
    with pytest.raises(vega3d.errors.FusionError, match=r"no gate to record.*vega3d\.record_shares"):
        vega3d.record_gates(model).__enter__()
    with vega3d.record_shares(model) as shares:
        model()
    assert shares[0].generative is not None
    assert 0 < float(shares[0].generative.mean()) < 1
    with vega3d.zeroed(model), vega3d.record_shares(model) as shares:
        model()
    assert bool((shares[0].host == 1).all())


def test_recordings_of_other_threads(model: Home) -> None:
    with vega3d.record_gates(model) as own, vega3d.record_gates(model, all_threads=True) as every:
        model()
        together(model, model)
    assert (len(own), len(every)) == (1, 3)


def test_recording_in_many_threads(model: Home) -> None:
    def record(count: int) -> int:
        with vega3d.record_gates(model) as gates:
            for _ in range(count):
                model()
        return len(gates)

    assert together(*(lambda n=n: record(n) for n in (5, 20, 35, 50))) == [5, 20, 35, 50]


def test_a_compiled_branch_looks_at_the_switches_in_every_call(model: Home, on: Tensor, switch: Any) -> None:
    with switch(model):
        off = model()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(), on)
        with switch(model):
            assert torch.equal(compiled(), off)
        with vega3d.record_gates(model) as gates:
            compiled()
        assert len(gates) == 1


def test_an_error_in_one_thread_stays_there(model: Home, on: Tensor) -> None:
    def fail() -> None:
        with vega3d.disabled(model), vega3d.record_gates(model):
            raise KeyError

    error, plain = outcomes(fail, model)
    assert isinstance(error, KeyError)
    assert torch.equal(plain, on)
    assert torch.equal(model(), on)
