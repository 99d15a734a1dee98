"""``tiny-wan``, for demos and tests."""

from __future__ import annotations

from ...contracts.settings import NoOptions
from ...contracts.specs import ALL_CONTEXTS, PriorSpec
from .family import later

#: Of the transformer.
BLOCKS = 4

SPECS = (
    PriorSpec(
        "tiny-wan",
        later("wan.tiny:load_tiny_wan"),
        "Wan's classes at toy size with random weights, for demos and tests: it knows nothing about space",
        feature_dim=96,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 2, "size": (96, 160), "window": 21, "overlap": 4},
        options=NoOptions,
        licence="none: random weights",
        taps=f"0 to {BLOCKS - 1}: blocks of the transformer",
        kind=later("wan.prior:WanPrior"),
    ),
)
