"""LTX-Video in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import Toy

TEXT, TEXT_DIM = 5, 16
SHAPE = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "cross_attention_dim": 20,
    "caption_channels": TEXT_DIM,
    "num_layers": 4,
}


def write(folder: Path) -> None:
    """A transformer of four blocks, a VAE with statistics of its latents, and an empty prompt with its mask."""
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    LTXVideoTransformer3DModel(**SHAPE).save_pretrained(folder / "transformer")
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.latents_mean.copy_(torch.randn(8) * 0.1)
    vae.latents_std.copy_(torch.rand(8) + 0.5)
    vae.save_pretrained(folder / "vae")
    mask = torch.arange(TEXT)[None] < 2
    save_file(
        {"prompt_embeds": torch.randn(1, TEXT, TEXT_DIM), "prompt_attention_mask": mask},
        folder / "empty_prompt.safetensors",
    )


TOYS = (Toy("ltx-video", write, {"size": (64, 96), "tap": 2}, (2, 3), blocks=4, id="ltx-video"),)
