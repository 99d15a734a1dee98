"""Stable Video Diffusion in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .base import Toy

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "down_block_types": (*("CrossAttnDownBlockSpatioTemporal",) * 2, "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 2),
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
    "layers_per_block": 1,
    "cross_attention_dim": 20,
    "num_attention_heads": (1, 2, 2),
}
#: As published.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def write(folder: Path) -> None:
    """A UNet of three down blocks, a VAE, a CLIP image encoder and a scheduler."""
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    ).save_pretrained(folder / "vae")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=20,
        )
    ).save_pretrained(folder / "image_encoder")
    EulerDiscreteScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")


# Two pixels are one latent here. Taps differ in channels and size, so that the family tests them itself.
TOYS = (Toy("svd", write, {"size": (16, 24), "context": "frame"}, (2, 3), id="svd"),)
