"""``small-world``, which lies in the package."""

from __future__ import annotations

from ...contracts.settings import NoOptions
from ...contracts.specs import PriorSpec
from .family import later

SPECS = (
    PriorSpec(
        "small-world",
        later("wan.small_world.loading:load_small_world"),
        "a Wan transformer of 1.7 million parameters, trained on rendered worlds of 24x24 pixels; in the package",
        feature_dim=128,
        contexts=("frame", "views"),
        # Clips of four frames were its longest. It learnt to look from frame to frame, so `views` is its default.
        defaults={"tap": 4, "size": (24, 24), "context": "views", "window": 4, "overlap": 2},
        options=NoOptions,
        licence="Apache 2.0, as this package",
        taps="0 to 5: blocks of the transformer",
        kind=later("wan.small_world.prior:SmallWorldPrior"),
    ),
)
