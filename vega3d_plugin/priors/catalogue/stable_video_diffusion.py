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
        condition: whose clean latents lie beside a frame's noisy ones: ``each``: its own, as released; ``first``: those
            of its chunk's first frame, as the model was trained.
        schedule: how a timestep becomes a noise level: ``training``: as of the 1000 steps of the schedule that the
            checkpoint names, as for SD 2.1 (250: sigma 0.70); ``released``: the nearest in the list of the sampler's
            continuous timesteps. These are 0.25 log(sigma), 1.64 at most, so any timestep from 2 on means the highest
            noise there is, sigma 700: only the condition still shows the frame.
        scale_latents: multiply the latents by the VAE's ``scaling_factor`` before the noise is added, as in training;
            the released code does not.
        fps: frames per second that the model is told.
        motion: how much motion it is told to expect (``motion_bucket_id``).
        augmentation: noise on the frames' pixels before they are encoded, in [-1, 1], which the model is told too.
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
        "Stable Video Diffusion, image to video, 14 frames: what enters the mid block of its UNet",
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
