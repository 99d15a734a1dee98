"""The forward pass of diffusers' ``WanTransformer3DModel``, written for training at small size on a CPU.

The same mathematics with the same parameters, in less time: the noise is embedded once a frame and not once a token,
the prompt's cross-attention is one vector a block, patches are cut by a reshape, attention runs in float32 (its
backward pass in bfloat16 is three times slower), and ``torch.compile`` fuses what lies between matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import TEXT_DIM, TRAIN_TIMESTEPS


def predict_quickly(transformer: Any, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """As :func:`~small_world.model.predict`."""
    config = transformer.config
    batch, channels, steps, height, width = noisy.shape
    patch = config.patch_size[1]
    rows, columns = height // patch, width // patch
    patches = noisy.view(batch, channels, steps, rows, patch, columns, patch).permute(0, 2, 3, 5, 1, 4, 6)
    embedding = transformer.patch_embedding
    tokens = F.linear(patches.reshape(batch, steps, rows * columns, -1), embedding.weight.flatten(1), embedding.bias)

    condition = transformer.condition_embedder
    prompt = tokens.new_zeros(1, 1, TEXT_DIM)
    noise, modulation, prompt, _ = condition((sigmas * TRAIN_TIMESTEPS).flatten(), prompt, None)
    modulation = modulation.float().view(batch, steps, 6, -1)
    cosines, sines = transformer.rope(noisy)
    rotation = cosines[..., 0::2].float(), sines[..., 1::2].float()
    tokens = tokens.float()
    for block in transformer.blocks:
        tokens = _block(block, tokens, prompt, modulation, rotation)

    shift, scale = (transformer.scale_shift_table + noise.float().view(batch, steps, 1, -1)).unsqueeze(3).unbind(2)
    out = transformer.proj_out(_modulated(tokens, shift, scale, config.eps))
    out = out.view(batch, steps, rows, columns, patch, patch, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(batch, -1, steps, height, width)


def _block(block: Any, tokens: Tensor, prompt: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """``[B, T, N, C]``, float32."""
    parts = (block.scale_shift_table + modulation).unsqueeze(3).unbind(2)  # six of [B, T, 1, C]
    shift, scale, gate, ff_shift, ff_scale, ff_gate = parts
    attended = _attention(block.attn1, _modulated(tokens, shift, scale, block.norm1.eps), rotation)
    told = block.attn2.to_out[0](block.attn2.to_v(prompt))
    tokens = tokens + attended * gate + told
    return tokens + block.ffn(_modulated(tokens, ff_shift, ff_scale, block.norm3.eps)) * ff_gate


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps) * (1 + scale) + shift


def _attention(attn: Any, tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    batch, steps, count, _ = tokens.shape
    weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
    bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
    query, key, value = F.linear(tokens.flatten(1, 2), weight, bias).float().chunk(3, dim=-1)
    query, key, value = (
        part.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for part in (_normalised(attn.norm_q, query), _normalised(attn.norm_k, key), value)
    )
    with torch.autocast("cpu", enabled=False):
        seen = F.scaled_dot_product_attention(_rotated(query, rotation), _rotated(key, rotation), value)
    return attn.to_out[0](seen.transpose(1, 2).reshape(batch, steps, count, -1))


def _normalised(norm: Any, tokens: Tensor) -> Tensor:
    return tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _rotated(tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Neighbouring channels form a pair."""
    cos, sin = (part.transpose(1, 2) for part in rotation)
    even, odd = tokens[..., 0::2], tokens[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
