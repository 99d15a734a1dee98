"""Looking inside and switching off: recorded gates, and the two controls of an ablation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ..contracts.errors import FusionError
from ..contracts.tables import FUSERS
from .fusers.gated import GatedFuser
from .handle import get_handle


@contextmanager
def record_gates(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the gate of every visual token: ``with vega3d.record_gates(model) as gates: model(**batch)``.

    Yields:
        A list that receives one map ``[t, h, w]`` per clip, float32, in (0, 1): the weight of the semantic token, the
        mean over channels for a gate per channel. Order: that of the host's own calls (in Qwen-VL images come before
        videos).

    Raises:
        FusionError: the fusion has no gate.
    """
    branch = get_handle(model).branch
    fuser = branch.fuser
    if not isinstance(fuser, GatedFuser):
        gated = ", ".join(n for n in FUSERS.names() if issubclass(FUSERS.get(n), GatedFuser))
        raise FusionError(f"Fusion {fuser.name!r} has no gate to record. These have: {gated}.")
    gates: list[Tensor] = []
    branch.gates = gates
    try:
        yield gates
    finally:
        branch.gates = None


def disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Switch the branch off: the host computes what it would without it."""
    return _switched(model, "enabled", False)


def zeroed(model: nn.Module) -> AbstractContextManager[None]:
    """Replace the generative tokens by zeros: does the model use what they say, or only that they are there?"""
    return _switched(model, "zeroed", True)


@contextmanager
def _switched(model: nn.Module, switch: str, value: bool) -> Iterator[None]:
    branch = get_handle(model).branch
    before = getattr(branch, switch)
    setattr(branch, switch, value)
    try:
        yield
    finally:
        setattr(branch, switch, before)
