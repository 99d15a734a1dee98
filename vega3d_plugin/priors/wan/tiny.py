"""``tiny-wan``: the real Wan classes at toy size, random weights from a seed. It knows nothing about space."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ...contracts.errors import Vega3dWarning
from ...contracts.priors import Prior
from ...contracts.seeded import seeded
from ...contracts.settings import PriorSettings
from ..catalogue.tiny import BLOCKS
from ..frozen.prior import resolved_tap
from .prior import WanPrior


class RandomWeightsWarning(Vega3dWarning):
    """A prior with random weights is in use."""


def load_tiny_wan(settings: PriorSettings) -> Prior:
    """Build ``tiny-wan``: same classes and code path as ``wan2.1-t2v-1.3b``, nothing to download."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    warnings.warn(
        "The prior 'tiny-wan' has random weights and knows nothing about space: it is for demos and tests. "
        "For real features use 'wan2.1-t2v-1.3b'.",
        RandomWeightsWarning,
        stacklevel=2,
    )
    tap = resolved_tap(settings.tap, BLOCKS, settings.name)
    with seeded(2603):
        transformer = WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=24, ffn_dim=192, num_layers=BLOCKS, text_dim=32, freq_dim=64
        )
        vae = AutoencoderKLWan(base_dim=8, z_dim=16)
        context = torch.randn(1, 32)
    transformer.blocks = transformer.blocks[: tap + 1]
    vae.decoder = None
    _calibrate(vae)
    return WanPrior(transformer, vae, context, settings.model_copy(update={"tap": tap}), reload=load_tiny_wan)


@torch.no_grad()
def _calibrate(vae: Any) -> None:
    """Give the random VAE latents of unit variance, as a trained one has; else the noise would drown the picture."""
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            # Random biases would draw the zero padding of the convolutions as a bright frame around every map.
            parameter.zero_()
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 160), indexing="ij")
    waves = torch.stack([torch.sin(k * x + 3 * k * y) for k in (9.0, 17.0, 29.0)])
    with torch.autocast("cpu", enabled=False):
        latents = vae.encode(waves[None, :, None]).latent_dist.mode()[0]
    vae.register_to_config(
        latents_mean=latents.flatten(1).mean(dim=1).tolist(), latents_std=latents.flatten(1).std(dim=1).tolist()
    )
