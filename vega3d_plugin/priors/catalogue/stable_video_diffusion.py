"""Stable Video Diffusion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...contracts.settings import Float, Int, Settings
from ...contracts.specs import PriorSpec
from ..diffusion.stages import STAGES
from .family import later


class SvdOptions(Settings):
    """Settings of Stable Video Diffusion alone; the defaults of the last three are those of diffusers' pipeline.

    Attributes:
        condition: the clean latents that are concatenated with a frame's noisy ones. ``each``: the frame's own, as in
            the released code. ``first``: those of the first frame of its chunk, as in the model's training.
        schedule: how a timestep becomes a noise level. ``training``: by the checkpoint's schedule of 1000 steps, as for
            SD 2.1 (timestep 250 is sigma 0.70). ``released``: by the nearest of the sampler's continuous timesteps.
            These are 0.25 log(sigma), at most 1.64, so every timestep from 2 on gives the highest noise, sigma 700. The
            model then sees the frame only through its condition.
        scale_latents: multiply the latents by the VAE's ``scaling_factor`` before noise is added, as in the model's
            training. The released code does not.
        fps: the model's input for frames per second.
        motion: the model's input for the amount of motion (``motion_bucket_id``).
        augmentation: noise added to the pixels (in [-1, 1]) before they are encoded; also an input of the model.
    """

    condition: Literal["each", "first"] = "each"
    schedule: Literal["training", "released"] = "training"
    scale_latents: Annotated[bool, Field(strict=True)] = True
    fps: Annotated[Int, Field(ge=1)] = 7
    motion: Annotated[Int, Field(ge=0)] = 127
    augmentation: Annotated[Float, Field(ge=0)] = 0.02


SPECS = (
    PriorSpec(
        "svd",
        later("generators.stable_video_diffusion:load"),
        "Stable Video Diffusion, image to video, 14 frames; the feature is the input of the UNet's mid block",
        source="stabilityai/stable-video-diffusion-img2vid",
        feature_dim=1280,
        contexts=("views", "frame"),
        defaults={
            "size": (896, 896),
            "resize": "stretch",
            "timestep": 250,
            "context": "views",
            "window": 8,
            "overlap": 0,
        },
        presets={"released": {"options": {"schedule": "released", "scale_latents": False}}},
        options=SvdOptions,
        licence="Stability AI Community License",
        taps=STAGES,
        parameters=1.2,
        kind=later("generators.stable_video_diffusion:StableVideoDiffusionPrior"),
    ),
)
