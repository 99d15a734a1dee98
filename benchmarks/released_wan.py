"""The released code's own Wan, from a checkout of VEGA-3D's branch main: 3D convolutions, all blocks, 512 tokens.

Nothing of it is copied or changed on disk. Its packages import far more than the model, so the two files are imported
by themselves (they need the package einops); flash attention, which needs CUDA, is replaced by torch's own.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDER = "llava/model/multimodal_generative_encoder/wan/modules"
SIGMA, TAU = 0.2999238, 299


class ReleasedWan:
    """Random weights of the 1.3B geometry in the released classes.

    Args:
        checkout: of VEGA-3D.
        blocks: of the transformer; all are run, as released.
        tap: index of the block whose output is kept.
    """

    def __init__(self, checkout: Path, blocks: int, tap: int) -> None:
        folder = checkout / FOLDER
        if not (folder / "model.py").is_file():
            raise FileNotFoundError(f"{folder} has no model.py: expected a checkout of VEGA-3D, branch main.")
        package = sys.modules["released_wan_modules"] = types.ModuleType("released_wan_modules")
        package.__path__ = [str(folder)]
        model: Any = importlib.import_module("released_wan_modules.model")
        vae: Any = importlib.import_module("released_wan_modules.vae")
        model.flash_attention = _attention
        torch.manual_seed(0)
        shape = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": blocks}
        self.model = model.WanModel(**shape).eval().requires_grad_(False)
        self.vae = vae.WanVAE_(dim=96, z_dim=16, temperal_downsample=[False, True, True]).eval().requires_grad_(False)
        self.scale = [torch.zeros(16), torch.ones(16)]
        self.prompt = torch.randn(1, 4096)
        self.tap = tap

    def encode(self, clip: Tensor) -> Tensor:
        """``[T, 3, H, W]`` in [0, 1] to latents ``[T, 16, 1, h, w]``, a frame at a time."""
        return torch.cat([self.vae.encode(frame[None, :, None] * 2 - 1, self.scale) for frame in clip])

    def transform(self, latents: Tensor) -> Tensor:
        """Latents to the tap's tokens ``[T, L, C]``, all frames as one batch."""
        noisy = (1 - SIGMA) * latents + SIGMA * torch.randn_like(latents)
        kept: list[Tensor] = []
        hook = self.model.blocks[self.tap].register_forward_hook(lambda module, args, out: kept.append(out))
        length = latents.shape[-1] * latents.shape[-2] // 4
        times = torch.full((len(latents),), TAU)
        self.model(list(noisy), t=times, context=[self.prompt] * len(latents), seq_len=length)
        hook.remove()
        return kept[0]


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """``[B, L, heads, d]``; no sequence is padded here."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous()
