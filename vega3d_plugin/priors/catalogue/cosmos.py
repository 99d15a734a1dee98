"""Cosmos-Predict, both generations."""

from __future__ import annotations

from pydantic import Field

from ...contracts.settings import Float, Settings
from .family import Rows


class Cosmos2Options(Settings):
    """Settings of Cosmos-Predict2 alone.

    Attributes:
        fps: frames per second, for the positions in time (diffusers' pipeline: 16). It has an effect only in contexts
            ``views`` and ``video``.
    """

    fps: Float = Field(default=16.0, gt=0)


class Cosmos1Options(Settings):
    """Settings of Cosmos-Predict1 alone.

    Attributes:
        fps: frames per second, for the positions in time (diffusers' pipeline: 30). It has an effect only in contexts
            ``views`` and ``video``.
    """

    fps: Float = Field(default=30.0, gt=0)


LICENCE = "NVIDIA Open Model License"
PREDICT2 = Rows("generators.cosmos:PREDICT2", Cosmos2Options, licence=LICENCE)
PREDICT1 = Rows("generators.cosmos:PREDICT1", Cosmos1Options, licence=LICENCE)

SPECS = (
    PREDICT2.row(
        "cosmos-predict2-2b",
        "Cosmos-Predict2 Video2World, 2B, 28 blocks, with Wan's VAE; runs without conditioning frames",
        source="nvidia/Cosmos-Predict2-2B-Video2World",
        width=2048,
        blocks=28,
        tap=19,
        size=(704, 1280),
        # Trained on 93 frames, which are 24 latent steps. Its schedule has no shift.
        window=24,
        shift=1.0,
        parameters=1.5,
    ),
    PREDICT1.row(
        "cosmos-predict1-7b",
        "Cosmos-Predict1 Text2World, 7B, 28 blocks; 8 frames make a latent step",
        source="nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        width=4096,
        blocks=28,
        tap=19,
        size=(704, 1280),
        # As above; trained on 121 frames, which are 16 latent steps.
        window=16,
        shift=1.0,
        parameters=5.2,
    ),
)
