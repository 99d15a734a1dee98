"""The variants of Wan 2.2: what differs between their checkpoints and those of Wan 2.1.

Wan 2.2 has the architecture of Wan 2.1: the 5B with a VAE of its own of 16x16 pixels, the A14B with two transformers,
one for high and one for low noise. At the timesteps where features are taken (300; they change over at 875) it is the
low-noise one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...contracts.errors import PriorError
from ...contracts.settings import PriorSettings
from ..diffusion.flow_matching import NoiseLevel
from .checkpoint import Variant
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
