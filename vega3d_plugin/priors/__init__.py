"""Priors: the contract in ``contracts.priors``, a row for each in ``catalogue``, its code in its family's folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..contracts.priors import Prior
    from ..contracts.specs import PriorSpec
    from .load import list_priors, load_prior

#: Imported when they are first used: whoever looks into the catalogue needs no torch.
_PLACES = {
    "Prior": "..contracts.priors",
    "PriorSpec": "..contracts.specs",
    "list_priors": ".load",
    "load_prior": ".load",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name], __name__), name)
    return value


__all__ = ["Prior", "PriorSpec", "list_priors", "load_prior"]
