"""``small-world``: a small trained video generator of Wan's classes that lies in the package."""

from __future__ import annotations

from ....contracts.priors import Prior, PriorSpec
from ....contracts.settings import NoOptions, PriorSettings
from .prior import SmallWorldPrior

__all__ = ["SPECS", "SmallWorldPrior"]


def _load(settings: PriorSettings) -> Prior:
    from .loading import load_small_world

    return load_small_world(settings)


SPECS = (
    PriorSpec(
        "small-world",
        _load,
        "Wan's transformer with 1.7 million parameters, TRAINED on rendered worlds of 24x24 pixels; in the package",
        feature_dim=128,
        contexts=("frame", "views"),
        # Clips of four frames were its longest. It learnt to look from frame to frame, so `views` is its default.
        defaults={"tap": 4, "size": (24, 24), "context": "views", "window": 4, "overlap": 2},
        options=NoOptions,
        licence="Apache 2.0, as this package",
        taps="0 to 5: blocks of the transformer",
        kind=SmallWorldPrior,
    ),
)
