"""Wan 2.1 VACE."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Settings
from .family import Rows


class VaceOptions(Settings):
    """Settings of VACE alone.

    Attributes:
        reference: ``first``: the clip's first frame is the reference image. It gets the same noise as the others, and
            its tokens are dropped. ``none``: no reference. ``released``: repeats an oddity of the released code, where
            rows of zeros take the place of the reference in the noisy latents and become the features (context
            ``frame`` only).
        context_scale: weight of what the control branch adds to each block.
    """

    reference: Literal["first", "none", "released"] = "first"
    context_scale: float = 1.0


VACE = Rows(
    "wan.vace:VACE",
    VaceOptions,
    presets={"released": {"tap": -1, "context": "frame", "options": {"reference": "released"}}},
    taps="blocks of the transformer, after the control branch's contribution",
)

SPECS = (
    VACE.row(
        "wan2.1-vace-1.3b",
        "Wan 2.1 VACE, 1.3B, 30 blocks; takes the frames as control input and the first frame as reference",
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
        "Wan 2.1 VACE, 14B, 40 blocks; default tap at the relative depth of the 1.3B's",
        source="Wan-AI/Wan2.1-VACE-14B-diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=12,
    ),
)
