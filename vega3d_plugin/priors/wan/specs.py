"""The priors of the Wan family without VACE: what differs between them, and where their weights come from.

Wan 2.2 has the architecture of Wan 2.1: the 5B with a VAE of its own of 16x16 pixels, the A14B with two transformers,
one for high and one for low noise. At the timesteps where features are taken (300; they change over at 875) it is the
low-noise one.
"""

from __future__ import annotations

from torch import Tensor

from ...contracts.errors import PriorError
from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import NoOptions, PriorSettings
from ..diffusion.prior import ALL_CONTEXTS
from .checkpoint import Variant, load_prompt, load_variant, load_wan
from .prior import WanPrior

# Trained on 81 frames, which are 21 latent steps.
WINDOW = {"window": 21, "overlap": 4}

#: Timestep at which the A14B changes from one expert to the other (its ``boundary_ratio`` of 0.875).
BOUNDARY = 875

TI2V = Variant(original=("WanModel", "ti2v"), patched_vae=True, meaning="Wan 2.2 TI2V weights")
LOW_NOISE = Variant(
    original=("WanModel", "t2v"),
    folders=("transformer_2", "low_noise_model"),
    meaning="the low-noise expert of Wan 2.2 A14B",
)


def _load_5b(settings: PriorSettings) -> Prior:
    return load_variant(settings, TI2V, _load_5b)


def _load_a14b(settings: PriorSettings) -> Prior:
    if settings.timestep >= BOUNDARY:
        raise PriorError(
            f"Prior {settings.name!r} is the expert for low noise, below timestep {BOUNDARY}; got {settings.timestep}. "
            "Mid-noise timesteps do best: try 300."
        )
    return load_variant(settings, LOW_NOISE, _load_a14b)


def _prompt_5b(settings: PriorSettings) -> dict[str, Tensor]:
    return load_prompt(settings, TI2V)


def _prompt_a14b(settings: PriorSettings) -> dict[str, Tensor]:
    return load_prompt(settings, LOW_NOISE)


def _load(settings: PriorSettings) -> Prior:
    return load_wan(settings)


def _prompt(settings: PriorSettings) -> dict[str, Tensor]:
    return load_prompt(settings)


SPECS = (
    PriorSpec(
        "wan2.1-t2v-1.3b",
        _load,
        "Wan 2.1 text-to-video, 1.3B, 30 blocks: the paper's generator",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        feature_dim=1536,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 20, "size": (480, 832), **WINDOW},
        presets={"released": {"tap": -1}},
        options=NoOptions,
        prompt=_prompt,
        licence="Apache 2.0",
        taps="0 to 29: blocks of the transformer",
        parameters=1.1,
        kind=WanPrior,
    ),
    PriorSpec(
        "wan2.1-t2v-14b",
        _load,
        "Wan 2.1 text-to-video, 14B, 40 blocks; the tap keeps the 1.3B's relative depth",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        feature_dim=5120,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 27, "size": (480, 832), **WINDOW},
        presets={"released": {"tap": -1}},
        options=NoOptions,
        prompt=_prompt,
        licence="Apache 2.0",
        taps="0 to 39: blocks of the transformer",
        parameters=10,
        kind=WanPrior,
    ),
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
        kind=WanPrior,
        licence="Apache 2.0",
        taps="0 to 39: blocks of the transformer",
        parameters=10,
    ),
)
