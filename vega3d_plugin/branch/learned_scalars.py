"""The learned scalars of a branch: how far training has opened it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..contracts.seeded import seeded
from ..contracts.settings import FusionSettings
from ..contracts.tables import FUSERS
from .fusers.build import build_fuser

PREFIX = "fuser."


@dataclass(frozen=True)
class Scalar:
    """A single number that a fuser learns, such as ``residual_scale``.

    Attributes:
        name: of the parameter.
        value: as it is now.
        start: before training; None when the fuser is not installed here.
    """

    name: str
    value: float
    start: float | None


def learned_scalars(tensors: Mapping[str, Tensor], fusion: FusionSettings | None, hidden_size: int) -> list[Scalar]:
    """The scalars among a branch's tensors.

    Weights and biases of layers are left out, even those of one element.

    Args:
        tensors: a branch's state, by name.
        fusion: how the branch was built; None when it is not known here.
        hidden_size: of the host.
    """
    values = {
        name.removeprefix(PREFIX): float(tensor)
        for name, tensor in tensors.items()
        if name.startswith(PREFIX) and tensor.numel() == 1 and not name.endswith((".weight", ".bias"))
    }
    start = _start(fusion, hidden_size) if values and fusion is not None else {}
    return [Scalar(name, value, start.get(name)) for name, value in values.items()]


def _start(fusion: FusionSettings, hidden_size: int) -> dict[str, float]:
    if fusion.name not in FUSERS:
        return {}
    with seeded(0):
        fuser = build_fuser(fusion.name, hidden_size, init=fusion.init, **fusion.options_for())
    return {name: float(p.detach()) for name, p in fuser.named_parameters() if p.numel() == 1}
