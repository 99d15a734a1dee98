"""Several taps from one run: what enters the module behind a block is the output of that block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

# Which prior is asked, and for which taps. A context variable, so that a prior may serve other threads meanwhile.
_ASKED: ContextVar[tuple[object, tuple[int, ...]] | None] = ContextVar("vega3d_taps", default=None)


@contextmanager
def asking(prior: object, taps: Sequence[int]) -> Iterator[None]:
    """Let the runs of a prior inside give the maps of all these taps, joined along the channels in this order."""
    token = _ASKED.set((prior, tuple(taps)))
    try:
        yield
    finally:
        _ASKED.reset(token)


def asked(prior: object, own: int) -> tuple[int, ...]:
    """The taps that a run is to give; its ``own`` alone where nobody asks for more."""
    asked_now = _ASKED.get()
    return asked_now[1] if asked_now is not None and asked_now[0] is prior else (own,)


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that holds the hidden states that entered each module, in the order given, once all have run."""
    kept: dict[int, Tensor] = {}
    filled: list[Tensor] = []

    def keep(index: int, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        kept[index] = args[0] if args else kwargs["hidden_states"]
        if len(kept) == len(modules):
            filled[:] = [kept[i] for i in range(len(modules))]

    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, i=i: keep(i, args, kwargs), with_kwargs=True)
        for i, module in enumerate(modules)
    ]
    try:
        yield filled
    finally:
        for hook in hooks:
            hook.remove()
