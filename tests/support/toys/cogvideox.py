"""CogVideoX in diffusers' layout: sine positions (2B), rotary ones (5B), two latent steps a token (1.5)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .base import Toy

TEXT, TEXT_DIM = 5, 16
SHAPE = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 8,
    "text_embed_dim": TEXT_DIM,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "max_text_seq_length": TEXT,
    # Latents of a trained size and length that are neither the toy's nor a single frame's.
    "sample_height": 6,
    "sample_width": 10,
    "sample_frames": 9,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "cogvideox-2b": {},
    "cogvideox-5b": {"use_rotary_positional_embeddings": True},
    "cogvideox1.5-5b": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}


def write(variant: str, folder: Path) -> None:
    """A transformer of four blocks, a VAE, a schedule and an empty prompt."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler
    from diffusers import CogVideoXTransformer3DModel as Transformer

    torch.manual_seed(0)
    Transformer(**{**SHAPE, **VARIANTS[variant]}).save_pretrained(folder / "transformer")
    AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4, scaling_factor=0.7
    ).save_pretrained(folder / "vae")
    small = variant == "cogvideox-2b"
    (CogVideoXDDIMScheduler if small else CogVideoXDPMScheduler)(
        snr_shift_scale=3.0 if small else 1.0,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    save_file({"prompt_embeds": torch.randn(1, TEXT, TEXT_DIM)}, folder / "empty_prompt.safetensors")


TOYS = tuple(
    Toy(name, partial(write, name), {"size": (32, 48), "tap": 2}, (2, 3), blocks=4, id=name) for name in VARIANTS
)
