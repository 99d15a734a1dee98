"""diffusers' Wan transformer at small size on pixels, and the same mathematics faster for training on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_DIM = 16
# Pixels in [0, 1] to latents of mean 0 and about unit variance, and back.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
TRAIN_TIMESTEPS = 1000


def build_transformer(width: int = 128, blocks: int = 6, patch: int = 3, seed: int = 0) -> Any:
    """``WanTransformer3DModel`` with seeded weights, for latents that are RGB pixels."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, patch, patch),
            num_attention_heads=width // 32,
            attention_head_dim=32,
            in_channels=3,
            out_channels=3,
            text_dim=TEXT_DIM,
            freq_dim=64,
            ffn_dim=4 * width,
            num_layers=blocks,
            rope_max_seq_len=64,
        )


def load_transformer(folder: Path) -> Any:
    """One that :meth:`save_pretrained` wrote."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel.from_pretrained(folder)


def to_latents(frames: Tensor) -> Tensor:
    """Frames ``[B, T, 3, H, W]`` in [0, 1] to latents ``[B, 3, T, H, W]``."""
    return ((frames - PIXEL_MEAN) / PIXEL_STD).transpose(1, 2)


def to_frames(latents: Tensor) -> Tensor:
    """The inverse of :func:`to_latents`, clipped."""
    return (latents.transpose(1, 2) * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)


def predict(transformer: Any, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """The clean latents that the transformer expects.

    Args:
        noisy: ``[B, 3, T, H, W]``.
        sigmas: noise of each frame ``[B, T]``, in [0, 1]. Each token is given its frame's timestep, as Wan 2.2 5B is.
    """
    patch = transformer.config.patch_size[1]
    per_frame = (noisy.shape[3] // patch) * (noisy.shape[4] // patch)
    return transformer(
        hidden_states=noisy,
        timestep=(sigmas * TRAIN_TIMESTEPS).repeat_interleave(per_frame, dim=1),
        # All 512 tokens of the empty prompt are zeros: attention over equal keys is that over one.
        encoder_hidden_states=noisy.new_zeros(noisy.shape[0], 1, TEXT_DIM),
        return_dict=False,
    )[0]


class SelfAttention:
    """diffusers' ``WanAttnProcessor`` without a mask; float32 attention, whose backward pass is faster on a CPU."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert rotary_emb is not None
        query, key = attn.norm_q(attn.to_q(hidden_states).float()), attn.norm_k(attn.to_k(hidden_states).float())
        value = attn.to_v(hidden_states).float()
        query, key, value = (tokens.unflatten(2, (attn.heads, -1)) for tokens in (query, key, value))
        query, key = rotated(query, *rotary_emb), rotated(key, *rotary_emb)
        seen = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[0](seen.transpose(1, 2).flatten(2).to(hidden_states.dtype))


class OneTokenPrompt:
    """Cross-attention to a prompt of one token: its value, whatever the query."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return attn.to_out[0](attn.to_v(encoder_hidden_states))


def rotated(tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions: ``[B, L, heads, head_dim]``, neighbouring channels form a pair."""
    cos, sin = cosines[..., 0::2].float(), sines[..., 1::2].float()
    even, odd = tokens[..., 0::2], tokens[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def quicken(transformer: Any) -> Any:
    """Give the blocks the two processors above; outputs stay the same."""
    for block in transformer.blocks:
        block.attn1.set_processor(SelfAttention())
        block.attn2.set_processor(OneTokenPrompt())
    return transformer


def block_outputs(transformer: Any, noisy: Tensor, sigmas: Tensor) -> list[Tensor]:
    """Tokens ``[B, T, h * w, width]`` behind each block."""
    kept: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: kept.append(out.float())) for block in transformer.blocks
    ]
    try:
        with torch.no_grad():
            predict(transformer, noisy, sigmas)
    finally:
        for hook in hooks:
            hook.remove()
    return [tokens.unflatten(1, (noisy.shape[2], -1)) for tokens in kept]


def matrices(transformer: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The blocks' weight matrices, and all other parameters."""
    inner = {id(p) for name, p in transformer.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    parameters = list(transformer.parameters())
    return [p for p in parameters if id(p) in inner], [p for p in parameters if id(p) not in inner]
