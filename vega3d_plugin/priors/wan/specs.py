"""The priors of the Wan family without VACE: what differs between them, and where their weights come from.

Wan 2.2 has the architecture of Wan 2.1: the 5B with a VAE of its own of 16x16 pixels, the A14B with two transformers,
one for high and one for low noise. At the timesteps where features are taken (300; they change over at 875) it is the
low-noise one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...contracts.errors import PriorError
from ...contracts.settings import PriorSettings
from ..diffusion.flow_matching import NoiseLevel
from .checkpoint import TEXT_TO_VIDEO, Variant
from .prior import WanPrior

#: Timestep at which the A14B changes from one expert to the other (its ``boundary_ratio`` of 0.875).
BOUNDARY = 875


class LowNoisePrior(WanPrior):
    """Features of the A14B's expert for low noise."""

    def noise_level(self) -> NoiseLevel:
        """As of Wan 2.1. Raises :class:`PriorError` at a timestep that is the other expert's."""
        _check_timestep(self.settings)
        return super().noise_level()


def _check_timestep(settings: PriorSettings) -> None:
    if settings.timestep >= BOUNDARY:
        raise PriorError(
            f"Prior {settings.name!r} is the expert for low noise, below timestep {BOUNDARY}; got {settings.timestep}. "
            "Mid-noise timesteps do best: try 300."
        )


@dataclass(frozen=True)
class LowNoise(Variant):
    """The A14B's second transformer."""

    def check(self, settings: PriorSettings) -> None:
        """The timestep must be this expert's."""
        _check_timestep(settings)


TI2V = Variant(original=("WanModel", "ti2v"), patched_vae=True, meaning="Wan 2.2 TI2V weights")
LOW_NOISE = LowNoise(
    original=("WanModel", "t2v"),
    folders=("transformer_2", "low_noise_model"),
    prior=LowNoisePrior,
    meaning="the low-noise expert of Wan 2.2 A14B",
)

SPECS = (
    TEXT_TO_VIDEO.row(
        "wan2.1-t2v-1.3b",
        "Wan 2.1 text-to-video, 1.3B, 30 blocks: the paper's generator",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        width=1536,
        blocks=30,
        tap=20,
        size=(480, 832),
        # Trained on 81 frames, which are 21 latent steps.
        window=21,
        parameters=1.1,
    ),
    TEXT_TO_VIDEO.row(
        "wan2.1-t2v-14b",
        "Wan 2.1 text-to-video, 14B, 40 blocks; the tap keeps the 1.3B's relative depth",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=10,
    ),
    TI2V.row(
        "wan2.2-ti2v-5b",
        "Wan 2.2 text-and-image-to-video, 5B, 30 blocks, a latent for 16x16 pixels: fewer tokens per frame",
        source="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        width=3072,
        blocks=30,
        tap=20,
        size=(704, 1280),
        # Trained on 121 frames, which are 31 latent steps.
        window=31,
        parameters=3.7,
    ),
    LOW_NOISE.row(
        "wan2.2-a14b",
        "Wan 2.2 text-to-video A14B, the low-noise expert of its two, 40 blocks",
        source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        width=5120,
        blocks=40,
        tap=27,
        size=(480, 832),
        window=21,
        parameters=10,
    ),
)
