"""Stable Diffusion 2.1 and its VAE in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .base import Toy

WIDTHS = (8, 16, 24)
PROMPT_WIDTH, PROMPT_LENGTH = 20, 7
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 12, 12),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
    "latent_channels": 4,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": WIDTHS,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": PROMPT_WIDTH,
    "attention_head_dim": (1, 2, 3),
    "use_linear_projection": True,
}
#: As published for SD 2.1 base.
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write(folder: Path) -> None:
    """A UNet of three down blocks, a VAE, a scheduler and an empty prompt."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    write_vae(folder)
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    PNDMScheduler(**SCHEDULE, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    save_file({"prompt_embeds": torch.randn(1, PROMPT_LENGTH, PROMPT_WIDTH)}, folder / "empty_prompt.safetensors")


def write_vae(folder: Path) -> None:
    """The VAE alone, in the layout of the whole checkpoint."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    AutoencoderKL(
        **VAE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")


# 64 pixels are 8 latents, and 2 features behind two halvings.
TOYS = (
    # Taps differ in channels and size, so that the family tests them itself.
    Toy("sd2.1", write, {"size": (64, 96)}, (2, 3), id="sd2.1"),
    Toy("sd2.1-vae", write_vae, {"size": (32, 48)}, (2, 3), id="sd2.1-vae"),
)
