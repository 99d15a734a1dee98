"""The learned scalars of a branch, and the share they allow: how far training has opened it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..contracts.fusers import Fuser
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
    fuser = _built(fusion, hidden_size) if values else None
    start = {} if fuser is None else {name: float(p.detach()) for name, p in fuser.named_parameters() if p.numel() == 1}
    return [Scalar(name, value, start.get(name)) for name, value in values.items()]


def saved_share(tensors: Mapping[str, Tensor], fusion: FusionSettings | None, hidden_size: int) -> str:
    """The effective share of the generative tokens that a saved branch allows, in words.

    Args: as of :func:`learned_scalars`.
    """
    if fusion is None or fusion.name not in FUSERS:
        return "not known here: the fusion is not installed"
    fuser = None
    if FUSERS.get(fusion.name).share_limits is not Fuser.share_limits:
        # Others may be large, and have nothing to say.
        fuser = _built(fusion, hidden_size)
    if fuser is None:
        return "depends on the tokens: record it with vega3d.record_shares"
    state = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    try:
        fuser.load_state_dict(state)
    except RuntimeError:
        return "not known here: the weights are not those of the fusion"
    limits = fuser.share_limits()
    if limits is None:
        return "depends on the tokens: record it with vega3d.record_shares"
    low, high = limits
    if not math.isfinite(low + high):
        return "NaN or infinite: training has diverged"
    if high == 0:
        return "0: the branch changes nothing yet"
    if low == high:
        return f"{low:.4g} of every token"
    return f"{low:.4g} to {high:.4g} of a token, by its gate"


def _built(fusion: FusionSettings | None, hidden_size: int) -> Fuser | None:
    """The fuser as it started; None where it is not known or not installed."""
    if fusion is None or fusion.name not in FUSERS:
        return None
    with seeded(0):
        return build_fuser(fusion.name, hidden_size, init=fusion.init, **fusion.options_for())
