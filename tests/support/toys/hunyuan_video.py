"""HunyuanVideo in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .base import Toy

SHAPE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "rope_axes_dim": (4, 4, 4),
    "num_layers": 2,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "in_channels": 4,
    "out_channels": 4,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
}


def write(folder: Path) -> None:
    """A transformer of two dual-stream and three single-stream blocks, a VAE and an empty prompt of two tokens."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    HunyuanVideoTransformer3DModel(**SHAPE).save_pretrained(folder / "transformer")
    AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1
    ).save_pretrained(folder / "vae")
    prompt = {
        "prompt_embeds": torch.randn(1, 2, 16),
        "prompt_attention_mask": torch.ones(1, 2, dtype=torch.long),
        "pooled_prompt_embeds": torch.randn(1, 8),
    }
    save_file(prompt, folder / "empty_prompt.safetensors")


TOYS = (Toy("hunyuan-video", write, {"size": (32, 48), "tap": 3}, (2, 3), blocks=5, id="hunyuan-video"),)
