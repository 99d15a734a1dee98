"""Mochi 1."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Settings
from .family import Rows


class MochiOptions(Settings):
    """Settings of Mochi alone.

    Attributes:
        prompt: ``zeros``: all text tokens are masked, as in Genmo's code for an empty text. ``encoded``: T5's embedding
            of the empty text, as in diffusers' pipeline, read from ``empty_prompt.safetensors`` beside the weights or
            computed by the checkpoint's text encoder.
    """

    prompt: Literal["zeros", "encoded"] = "zeros"


FAMILY = Rows("generators.mochi:FAMILY", MochiOptions)

SPECS = (
    FAMILY.row(
        "mochi-1",
        "Mochi 1 text-to-video, 10B, 48 blocks; 6 frames make a latent step",
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
