"""torch's own initialisation of layers, where a script has switched it off.

LLaVA's ``disable_torch_init`` replaces ``reset_parameters`` by nothing, so that models load faster. A branch or a prior
that is made afterwards would have whatever was in memory for weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: As they were when this was imported, before any script ran.
_OWN: dict[type[nn.Module], Any] = {
    cls: vars(cls)["reset_parameters"]
    for cls in vars(nn).values()
    if isinstance(cls, type) and issubclass(cls, nn.Module) and "reset_parameters" in vars(cls)
}


@contextmanager
def own_initialisers() -> Iterator[None]:
    """Within it, layers of torch are initialised as torch does it; what the script has put there comes back."""
    replaced = {
        cls: vars(cls)["reset_parameters"] for cls, own in _OWN.items() if vars(cls)["reset_parameters"] is not own
    }
    for cls in replaced:
        setattr(cls, "reset_parameters", _OWN[cls])  # noqa: B010
    try:
        yield
    finally:
        for cls, theirs in replaced.items():
            setattr(cls, "reset_parameters", theirs)  # noqa: B010
