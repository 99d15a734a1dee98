"""Mochi 1."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Settings
from .family import Rows


class MochiOptions(Settings):
    """Settings of Mochi alone.

    Attributes:
        prompt: ``zeros``: every text token masked, as Genmo's code does it without text; ``encoded``: T5's embedding of
            the empty text, as diffusers' pipeline does it by default, from ``empty_prompt.safetensors`` beside the
            weights or from the checkpoint's own text encoder.
    """

    prompt: Literal["zeros", "encoded"] = "zeros"


FAMILY = Rows("generators.mochi:FAMILY", MochiOptions)

SPECS = (
    FAMILY.row(
        "mochi-1",
        "Mochi 1 text-to-video, 10B, 48 blocks, latent steps of 6 frames",
        source="genmo/mochi-1-preview",
        width=3072,
        blocks=48,
        tap=32,
        size=(480, 848),
        # Trained on up to 163 frames, which are 28 latent steps. Its schedule has no shift.
        window=28,
        shift=1.0,
        parameters=7.0,
    ),
)
