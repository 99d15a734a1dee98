"""Wan 2.2 on diffusers' own classes: the 5B with its own VAE of 16x16 pixels, and the A14B's expert for low noise.

Both are the architecture of Wan 2.1 (:mod:`~vega3d_plugin.priors.wan`). The A14B has two transformers, one for high and
one for low noise; at the timesteps where features are taken (300; they change over at 875) it is the low-noise one.
"""

from __future__ import annotations

from torch import Tensor

from ..config import NoOptions, PriorSettings
from ..errors import PriorError
from .base import Prior, PriorSpec
from .diffusion import ALL_CONTEXTS
from .flow_matching import NoiseLevel
from .wan import WINDOW, WanPrior
from .wan_checkpoint import Variant, load_prompt, load_variant

#: Timestep at which the A14B changes from one expert to the other (its ``boundary_ratio`` of 0.875).
BOUNDARY = 875

TI2V = Variant(original=("WanModel", "ti2v"), patched_vae=True, meaning="Wan 2.2 TI2V weights")


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


LOW_NOISE = Variant(
    original=("WanModel", "t2v"),
    folders=("transformer_2", "low_noise_model"),
    prior=LowNoisePrior,
    meaning="the low-noise expert of Wan 2.2 A14B",
)


def _load_5b(settings: PriorSettings) -> Prior:
    return load_variant(settings, TI2V, _load_5b)


def _load_a14b(settings: PriorSettings) -> Prior:
    _check_timestep(settings)
    return load_variant(settings, LOW_NOISE, _load_a14b)


def _prompt_5b(settings: PriorSettings) -> dict[str, Tensor]:
    return load_prompt(settings, TI2V)


def _prompt_a14b(settings: PriorSettings) -> dict[str, Tensor]:
    return load_prompt(settings, LOW_NOISE)


SPECS = (
    PriorSpec(
        "wan2.2-ti2v-5b",
        _load_5b,
        "Wan 2.2 text-and-image-to-video, 5B, 30 blocks, a latent for 16x16 pixels: fewer tokens per frame",
        source="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        feature_dim=3072,
        contexts=ALL_CONTEXTS,
        # Trained on 121 frames, which are 31 latent steps.
        defaults={"tap": 20, "size": (704, 1280), "window": 31, "overlap": 4},
        options=NoOptions,
        prompt=_prompt_5b,
        kind=WanPrior,
        licence="Apache 2.0",
        taps="0 to 29: blocks of the transformer",
        parameters=3.7,
    ),
    PriorSpec(
        "wan2.2-a14b",
        _load_a14b,
        "Wan 2.2 text-to-video A14B, the low-noise expert of its two, 40 blocks",
        source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        feature_dim=5120,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 27, "size": (480, 832), **WINDOW},
        options=NoOptions,
        prompt=_prompt_a14b,
        kind=LowNoisePrior,
        licence="Apache 2.0",
        taps="0 to 39: blocks of the transformer",
        parameters=10,
    ),
)
