"""Device, dtype, memory, compilation: what all built-in priors share."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.small_wan import close, frames, fresh, tiny
from torch import nn

from vega3d_plugin.contracts.errors import PriorError
from vega3d_plugin.priors.frozen import prior as frozen
from vega3d_plugin.priors.frozen.memory import PriorMemoryError


def test_the_default_dtype_is_half_on_cuda_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, cuda = tiny(), torch.device("cuda")
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(frozen, "has_bfloat16", lambda device, has=has: has)
        assert prior.dtype_on(cuda) == expected
    assert prior.dtype_on(torch.device("cpu")) == torch.float32
    assert tiny(device="cpu").dtype_on(cuda) == torch.float32


def test_bfloat16_where_it_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "has_bfloat16", lambda device: False)
    with pytest.raises(PriorError, match=r"asked for bfloat16, which cpu lacks\. Use dtype='float16', or 'float32'"):
        fresh(dtype="bfloat16")(frames(1))


@pytest.mark.parametrize("device", ["warp:9", "gpu", "cuda:77"])
def test_a_device_that_cannot_be_used(device: str) -> None:
    prior = fresh(device=device)
    for use in (lambda: prior(frames(1)), lambda: prior.dtype_on(torch.device("cpu"))):
        with pytest.raises(PriorError, match=rf"The device '{device}' cannot be used: .*Use 'cpu', or leave"):
            use()


ALLOCATORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ALLOCATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("context", ["frame", "views"])
def test_out_of_memory_names_the_settings_that_lower_it(
    error: Exception, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = fresh(context=context)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(prior, "transform", fail)
    setting = "chunk_frames=1" if context == "frame" else "a smaller window (it is 21)"
    with pytest.raises(PriorMemoryError, match=r"Out of memory in prior 'tiny-wan' on cpu") as raised:
        prior(frames(2))
    assert setting in str(raised.value)
    assert "a smaller size (it is 32x48)" in str(raised.value)
    # And the next clip is a fresh start.
    monkeypatch.undo()
    assert prior(frames(2)).shape[0] == 2


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = fresh()

    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(prior, "transform", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        prior(frames(1))


def test_frames_per_forward() -> None:
    def sizes(**settings: Any) -> list[int]:
        prior, seen = fresh(**settings), []
        prior.transformer.patch_embedding.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
        prior(frames(5))
        return seen

    # A frame has 2 x 3 tokens.
    assert sizes() == [5]
    assert sizes(max_tokens=12) == [2, 2, 1]
    assert sizes(max_tokens=1) == [1] * 5
    assert sizes(chunk_frames=3) == [3, 2]
    assert sizes(chunk_frames=3, max_tokens=6) == [3, 2]
    assert sizes(context="views", max_tokens=1) == [1]


def test_compiled_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # With the tracer and without code generation, which needs a C++ compiler.
    graphs: list[int] = []
    whole = nn.Module.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self: whole(self, backend=backend))
    torch._dynamo.reset()
    caplog.set_level(logging.INFO, logger="vega3d")
    prior = fresh(compile=True)
    for _ in range(2):
        close(prior(frames(2)), tiny()(frames(2)))
    # One graph for all blocks, whole: nothing in a block breaks it.
    assert 1 <= len(graphs) <= 2
    assert "compiling 3 blocks. The first clip of every size and length waits" in caplog.text
    assert not any(part._compiled_call_impl for part in tiny().repeated_parts())
    torch._dynamo.reset()


def test_offload_puts_the_models_back(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, places = fresh(offload=True, device="cpu"), []
    move = prior._move
    monkeypatch.setattr(prior, "_move", lambda device: [places.append(str(device)), move(device)])
    prior(frames(1))
    prior(frames(1))
    assert places == ["cpu"] * 4


def test_an_error_offloads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, places = fresh(offload=True), []
    move = prior._move
    monkeypatch.setattr(prior, "_move", lambda device: [places.append(str(device)), move(device)])
    monkeypatch.setattr(prior, "transform", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prior(frames(1))
    assert len(places) == 2
