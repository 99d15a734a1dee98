"""Wan 2.1 VACE."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Settings
from .family import Rows


class VaceOptions(Settings):
    """Settings of VACE alone.

    Attributes:
        reference: ``first``: the clip's first frame, noisy like all others, stands before every frame and is dropped
            from the features; ``none``: no reference; ``released``: as ``first``, but the noisy latents lack the
            reference, are padded to its length with rows of zeros, and these rows are the features (an oddity of the
            released code, context ``frame`` only).
        context_scale: weight of the control branch's hints.
    """

    reference: Literal["first", "none", "released"] = "first"
    context_scale: float = 1.0


VACE = Rows(
    "wan.vace:VACE",
    VaceOptions,
    presets={"released": {"tap": -1, "context": "frame", "options": {"reference": "released"}}},
    taps="blocks of the transformer, each with the hint of the control branch",
)

SPECS = (
    VACE.row(
        "wan2.1-vace-1.3b",
        "Wan 2.1 VACE, 1.3B, 30 blocks: given the frames as control, and the first as reference",
        source="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        width=1536,
        blocks=30,
        tap=20,
        size=(480, 832),
        window=21,
        parameters=1.6,
    ),
    VACE.row(
        "wan2.1-vace-14b",
        "Wan 2.1 VACE, 14B, 40 blocks; the tap keeps the 1.3B's relative depth",
        source="Wan-AI/Wan2.1-VACE-14B-diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=12,
    ),
)
