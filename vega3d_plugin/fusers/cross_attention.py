"""``cross_attention``: semantic tokens ask, generative tokens answer, frame by frame."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FusionError
from ..layers import MLP, Linears
from .base import Fuser


class _Attention(Linears):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``.

    Not that class itself, because its ``out_proj`` is an ``nn.Linear`` that PEFT's ``all-linear`` would wrap.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__({"out_proj": (hidden_size, hidden_size)})
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        nn.init.xavier_uniform_(self.in_proj_weight)
        with torch.no_grad():
            self._bias("out_proj").zero_()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.linear("out_proj", out.transpose(-3, -2).flatten(-2))


class _Block(nn.Module):
    """Pre-norm cross-attention with a 2D sine-cosine position embedding, then an MLP, both residual."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1_query = nn.LayerNorm(hidden_size)
        self.norm1_key = nn.LayerNorm(hidden_size)
        self.norm1_value = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.cross_attention = _Attention(hidden_size, num_heads, dropout)
        self.mlp = MLP((hidden_size, 4 * hidden_size, hidden_size), dropout, names=("0", "3"))

    def forward(self, semantic: Tensor, generative: Tensor, position: Tensor) -> Tensor:
        query = self.norm1_query(semantic) + position
        key = self.norm1_key(generative) + position
        x = semantic + self.cross_attention(query, key, self.norm1_value(generative))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CrossAttention(Fuser):
    """Stack of cross-attention blocks; tokens attend within one frame.

    Tokens are ``[..., h, w, D]``, or ``[B, L, D]`` with ``L`` a perfect square (the released code's assumption).

    Args:
        num_heads: attention heads; must divide ``hidden_size``.
        num_layers: number of blocks.
        dropout: in attention and MLP, 0.1 as released.
    """

    name = "cross_attention"
    identity = "own"

    def __init__(self, hidden_size: int, *, num_heads: int = 8, num_layers: int = 1, dropout: float = 0.1) -> None:
        super().__init__(hidden_size)
        if hidden_size % num_heads or hidden_size % 4:
            raise FusionError(
                f"Fusion 'cross_attention' needs a hidden size divisible by num_heads and by 4, "
                f"got hidden_size={hidden_size}, num_heads={num_heads}."
            )
        self.cross_attn_blocks = nn.ModuleList(_Block(hidden_size, num_heads, dropout) for _ in range(num_layers))

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """Run the stack on each frame's tokens."""
        height, width = self._size(semantic)
        position = sincos_2d(height, width, self.hidden_size, semantic.device).to(semantic.dtype)
        shape = (-1, height * width, self.hidden_size)
        x, generative = semantic.reshape(shape), generative.reshape(shape)
        for block in self.cross_attn_blocks:
            x = block(x, generative, position)
        return x.reshape(semantic.shape)

    @torch.no_grad()
    def make_identity(self) -> None:
        """Zero the last layer of both residual paths of every block."""
        for block in self.cross_attn_blocks:
            block.cross_attention.zero("out_proj")  # type: ignore[union-attr, operator]
            block.mlp.zero_output()  # type: ignore[union-attr, operator]

    def _size(self, tokens: Tensor) -> tuple[int, int]:
        if tokens.ndim >= 4:
            return tokens.shape[-3], tokens.shape[-2]
        length = tokens.shape[-2] if tokens.ndim > 1 else 1
        side = math.isqrt(length)
        if side * side != length:
            raise FusionError(
                f"Fusion 'cross_attention' needs the grid of the tokens: got [..., {length}, {self.hidden_size}], "
                "which is no square. Pass [B, h, w, D]."
            )
        return side, side


def sincos_2d(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Sine-cosine position embedding ``[height * width, dim]``: the first half of the channels is the row's."""
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim / 4.0))

    def axis(positions: Tensor) -> Tensor:
        angles = positions.flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.cat([axis(rows), axis(columns)], dim=1)
