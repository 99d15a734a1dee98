"""VGGT."""

from __future__ import annotations

from ...contracts.settings import NoOptions
from ...contracts.specs import PriorSpec
from .family import later

SPECS = (
    PriorSpec(
        "vggt",
        later("encoders.vggt:load_vggt"),
        "VGGT, 1.2B, 24 pairs of blocks: trained with 3D supervision, as a baseline; needs the package vggt",
        source="facebook/VGGT-1B",
        feature_dim=2048,
        contexts=("frame", "views"),
        # As the class of the released code has it: chunks of eight views, attended jointly.
        defaults={"tap": -1, "size": (518, 518), "context": "views", "window": 8, "overlap": 0},
        # As scripts/3d/train/train_vggt_online.sh has it.
        presets={"released": {"size": (196, 196), "window": 32}},
        options=NoOptions,
        licence="CC BY-NC 4.0; facebook/VGGT-1B-Commercial: VGGT License",
        taps="0 to 23: pairs of a frame block and a global block",
        parameters=0.9,
        kind=later("encoders.vggt:VggtPrior"),
    ),
)
