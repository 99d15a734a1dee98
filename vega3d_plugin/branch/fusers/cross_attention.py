"""``cross_attention``: semantic tokens ask, generative tokens answer, frame by frame."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...contracts.errors import FusionError
from ...contracts.fusers import Fuser
from ..layers import Linears


class _Blocks(Linears):
    """Blocks of pre-norm cross-attention with a 2D sine-cosine position embedding, then an MLP, both residual.

    The parameters are those of the released modules, ``nn.MultiheadAttention`` among them (``0.norm2.weight``,
    ``0.cross_attention.out_proj.bias``), but all belong to this one module: a module called ``0`` or ``out_proj``,
    or an ``nn.Linear``, would be found by searches for a host's linears.
    """

    def __init__(self, count: int, hidden_size: int, num_heads: int, dropout: float) -> None:
        blocks = [str(index) for index in range(count)]
        shapes = {"cross_attention.out_proj": (1, 1), "mlp.0": (1, 4), "mlp.3": (4, 1)}
        super().__init__(
            {f"{b}.{n}": (i * hidden_size, o * hidden_size) for b in blocks for n, (i, o) in shapes.items()}
        )
        self.blocks, self.num_heads, self.dropout = blocks, num_heads, dropout
        for block in blocks:
            for norm in ("norm1_query", "norm1_key", "norm1_value", "norm2"):
                self.register_parameter(f"{block}.{norm}.weight", nn.Parameter(torch.ones(hidden_size)))
                self.register_parameter(f"{block}.{norm}.bias", nn.Parameter(torch.zeros(hidden_size)))
            name = f"{block}.cross_attention"
            self.register_parameter(f"{name}.in_proj_weight", nn.Parameter(torch.empty(3 * hidden_size, hidden_size)))
            self.register_parameter(f"{name}.in_proj_bias", nn.Parameter(torch.zeros(3 * hidden_size)))
            nn.init.xavier_uniform_(self.parameter(f"{name}.in_proj_weight"))
            nn.init.zeros_(self.parameter(f"{name}.out_proj.bias"))

    def forward(self, x: Tensor, generative: Tensor, position: Tensor) -> Tensor:
        """Semantic and generative tokens ``[N, L, D]`` and the positions' embedding ``[L, D]`` to ``[N, L, D]``."""
        for block in self.blocks:
            query = self._norm(f"{block}.norm1_query", x) + position
            key = self._norm(f"{block}.norm1_key", generative) + position
            value = self._norm(f"{block}.norm1_value", generative)
            x = x + self._attention(f"{block}.cross_attention", query, key, value)
            x = x + self._mlp(f"{block}.mlp", self._norm(f"{block}.norm2", x))
        return x

    def make_identity(self) -> None:
        """Zero the last layer of both residual paths of every block."""
        for block in self.blocks:
            self.zero(f"{block}.cross_attention.out_proj")
            self.zero(f"{block}.mlp.3")

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias"))

    def _attention(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = self.parameter(f"{name}.in_proj_weight").chunk(3)
        biases = self.parameter(f"{name}.in_proj_bias").chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.linear(f"{name}.out_proj", out.transpose(-3, -2).flatten(-2))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.linear(f"{name}.0", x)), self.dropout, self.training)
        return F.dropout(self.linear(f"{name}.3", x), self.dropout, self.training)


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
        if num_heads < 1 or hidden_size % num_heads or hidden_size % 4:
            raise FusionError(
                f"Fusion 'cross_attention' needs a hidden size divisible by num_heads and by 4, "
                f"got hidden_size={hidden_size}, num_heads={num_heads}."
            )
        self.cross_attn_blocks = _Blocks(num_layers, hidden_size, num_heads, dropout)

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """Run the stack on each frame's tokens."""
        height, width = self._size(semantic)
        position = sincos_2d(height, width, self.hidden_size, semantic.device).to(semantic.dtype)
        shape = (-1, height * width, self.hidden_size)
        fused: Tensor = self.cross_attn_blocks(semantic.reshape(shape), generative.reshape(shape), position)
        return fused.reshape(semantic.shape)

    def make_identity(self) -> None:
        """Zero the last layer of both residual paths of every block."""
        self.cross_attn_blocks.make_identity()

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
