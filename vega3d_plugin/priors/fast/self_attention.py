"""Self-attention of Wan with one matrix for queries, keys and values, and a rotation in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linears import ConvolvedLinear
from .reduction import Reduction


class FusedSelfAttention:
    """Attention processor with one projection for query, key and value.

    The three weights become views of one matrix, so nothing is held twice and every name stays what it was.

    Args:
        attn: diffusers' ``WanAttention``, a self-attention.
    """

    def __init__(self, attn: Any) -> None:
        parts = (attn.to_q, attn.to_k, attn.to_v)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        width = parts[0].weight.shape[0]
        for index, part in enumerate(parts):
            part.weight.data = weight[index * width : (index + 1) * width]
            part.bias.data = bias[index * width : (index + 1) * width]
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight, linear.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
        #: None once released: the three are then on their own again.
        self.projection: nn.Module | None = (
            ConvolvedLinear(linear) if isinstance(attn.to_q, ConvolvedLinear) else linear
        )

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any, rotary_emb: Any = None, **__: Any) -> Tensor:
        """``[B, L, width]`` to ``[B, L, width]``."""
        rotary = rotary_emb if rotary_emb is not None else rest[-1]
        assert self.projection is not None
        query, key, value = self.projection(hidden_states).chunk(3, dim=-1)
        shape = (attn.heads, -1)
        query = rotate(attn.norm_q(query).unflatten(2, shape), *rotary)
        key = rotate(attn.norm_k(key).unflatten(2, shape), *rotary)
        value = value.unflatten(2, shape)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels of ``x`` ``[B, L, heads, d]`` by the angles of ``[1, L, 1, d]``, each given twice."""
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    if x.device.type == "cpu" and x.dtype == torch.float32:
        # One pass over the memory in place of six.
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def _apply(prior: Any) -> None:
    for block in prior.blocks():
        # VACE in the released manner attends in its own way.
        if type(block.attn1.processor).__name__ in ("WanAttnProcessor", "FusedSelfAttention"):
            block.attn1.set_processor(FusedSelfAttention(block.attn1))


def _release(prior: Any) -> None:
    # The processor is no submodule, so its matrix would stay where it is when the three move away from under it.
    for block in prior.blocks():
        if isinstance(block.attn1.processor, FusedSelfAttention):
            block.attn1.processor.projection = None


FUSED_QKV = Reduction(
    "fused_qkv",
    "Computes queries, keys and values with one matrix product, and their rotation with one complex product. "
    "Works in every context.",
    _apply,
    _release,
)
