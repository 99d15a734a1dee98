"""Does a prior know space: correspondence, sweep, read-outs, pictures, report."""

from __future__ import annotations

import importlib
from typing import Any

# Made when first asked for, so that importing the library stays light.
_WHERE = {
    "correspondence": "scoring",
    "CorrespondenceResult": "results",
    "sweep": "sweeping",
    "SweepResult": "sweeping",
    "compare": "comparing",
    "Comparison": "comparing",
    "untrained_twin": "twin",
    "readout": "readouts.experiment",
    "ReadoutResult": "readouts.results",
}

__all__ = [
    "Comparison",
    "CorrespondenceResult",
    "ReadoutResult",
    "SweepResult",
    "compare",
    "correspondence",
    "readout",
    "sweep",
    "untrained_twin",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
