"""Both generations of Cosmos-Predict in diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .base import Toy

SHAPE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 4,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "adaln_lora_dim": 8,
    "max_size": (16, 32, 32),
}


def write_predict2(folder: Path) -> None:
    """A Video2World transformer of four blocks, Wan's VAE and an empty prompt of one token."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    _transformer(folder, in_channels=17, out_channels=16, rope_scale=(1.0, 3.0, 3.0), extra_pos_embed_type=None)
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")


def write_text2image(folder: Path) -> None:
    """A Text2Image transformer, which has no channel for given frames."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    _transformer(folder, in_channels=16, out_channels=16, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None)
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")


def write_predict1(folder: Path) -> None:
    """A Text2World transformer with learned positions, its own VAE and scheduler, and an empty prompt."""
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(0)
    _transformer(folder, in_channels=16, out_channels=16, rope_scale=(2.0, 1.0, 1.0), extra_pos_embed_type="learnable")
    AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8), num_layers=1
    ).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_max": 80, "sigma_min": 0.002}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def _transformer(folder: Path, **shape: Any) -> None:
    from diffusers import CosmosTransformer3DModel

    transformer = CosmosTransformer3DModel(**SHAPE, **shape)
    if transformer.learnable_pos_embed is not None:
        # Zero as they are made, so that they would not matter.
        for table in transformer.learnable_pos_embed.parameters():
            torch.nn.init.normal_(table)
    transformer.save_pretrained(folder / "transformer")
    save_file({"prompt_embeds": torch.randn(1, 1, 16)}, folder / "empty_prompt.safetensors")


SETTINGS = {"size": (32, 48), "tap": 2}
TOYS = (
    Toy("cosmos-predict2-2b", write_predict2, SETTINGS, (2, 3), blocks=4, id="cosmos-predict2-2b"),
    Toy("cosmos-predict2-2b", write_text2image, SETTINGS, (2, 3), blocks=4, id="cosmos-predict2-2b-text2image"),
    Toy("cosmos-predict1-7b", write_predict1, SETTINGS, (2, 3), blocks=4, id="cosmos-predict1-7b"),
)
