"""Attention within each view and across all views in turn, as VidFM3D's probe and VGGT have it.

Sources: ``vidfm3d/models/components/backbone_pixalign.py``, ``vidfm3d/vggt/layers/{block,attention,rope}.py``.
Parameters have the released names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Base of the rotary frequencies.
_BASE = 100.0


def rotary_angles(height: int, width: int, special: int, dim: int, device: torch.device) -> Tensor:
    """Angles of the 2D rotary embedding for one view's tokens.

    Args:
        height, width: of the token grid.
        special: tokens in front, all at position (0, 0); the grid begins at (1, 1).
        dim: channels of an attention head, divisible by 4: the first half turns with the row, the second with the
            column.

    Returns:
        ``[special + height * width, dim]`` in radians.
    """
    y, x = torch.meshgrid(
        torch.arange(1, height + 1, device=device), torch.arange(1, width + 1, device=device), indexing="ij"
    )
    places = torch.cat([y.new_zeros(special, 2), torch.stack([y, x], dim=-1).flatten(0, 1)])
    half = dim // 2
    frequencies = 1 / _BASE ** (torch.arange(0, half, 2, device=device).float() / half)
    angles = places[..., None] * frequencies
    return torch.cat([angles, angles], dim=-1).flatten(1)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Heads ``[B, heads, N, dim]`` turned by the angles ``[N, dim]``, each half of the channels on its own."""
    halves = x.unflatten(-1, (2, 2, -1))
    quarter_turn = torch.stack([-halves[..., 1, :], halves[..., 0, :]], dim=-2).flatten(-3)
    return x * angles.cos().to(x.dtype) + quarter_turn * angles.sin().to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, with normalised queries and keys where ``normalised``."""

    def __init__(self, dim: int, heads: int, normalised: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if normalised else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if normalised else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """Tokens ``[B, N, D]`` to ``[B, N, D]``; ``angles`` ``[N, D / heads]`` for the rotary embedding."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = _rotated(q, angles), _rotated(k, angles)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., outputs]``."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and an MLP of four times the width, each added to its input, scaled."""

    def __init__(self, dim: int, heads: int, scale: float = 0.01, *, normalised: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, normalised)
        self.ls1 = Scale(dim, scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, dim)
        self.ls2 = Scale(dim, scale)

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """Tokens ``[B, N, D]`` to ``[B, N, D]``."""
        x = x + self.ls1(self.attn(self.norm1(x), angles))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Backbone(nn.Module):
    """Features of a few views to tokens that have seen each other.

    Each view's tokens are led by one camera token and ``registers`` register tokens: one set for the first view, one
    for all others, which is all that tells the first view apart.

    Args:
        channels: of the features.
        width: of the tokens; the heads' width must be divisible by 4.
        depth: pairs of a block within each view and a block across all views.
        heads: of the attention.
        registers: register tokens.
        scale: initial factor of what a block adds; published 0.01.
    """

    def __init__(
        self, channels: int, width: int, depth: int, heads: int, registers: int = 4, scale: float = 0.01
    ) -> None:
        super().__init__()
        self.heads = heads
        self.special = 1 + registers
        self.input_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.frame_blocks = nn.ModuleList(Block(width, heads, scale) for _ in range(depth))
        self.global_blocks = nn.ModuleList(Block(width, heads, scale) for _ in range(depth))
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, registers, width))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features ``[B, S, C, h, w]`` to the outputs of each pair, ``[B, S, special + h * w, 2 * width]``."""
        batch, views, _, height, width = features.shape
        tokens = self.input_proj(features.flatten(3).transpose(2, 3))
        special = [self._special(token, batch, views) for token in (self.camera_token, self.register_token)]
        tokens = torch.cat([*special, tokens], dim=2)
        dim = tokens.shape[-1] // self.heads
        angles = rotary_angles(height, width, self.special, dim, features.device)
        pairs = []
        for within, across in zip(self.frame_blocks, self.global_blocks, strict=True):
            tokens = within(tokens.flatten(0, 1), angles).unflatten(0, (batch, views))
            alone = tokens
            tokens = across(tokens.flatten(1, 2), angles.repeat(views, 1)).unflatten(1, (views, -1))
            pairs.append(torch.cat([alone, tokens], dim=-1))
        return pairs

    @staticmethod
    def _special(token: Tensor, batch: int, views: int) -> Tensor:
        first, others = token[:, :1], token[:, 1:].expand(-1, views - 1, -1, -1)
        return torch.cat([first, others], dim=1).expand(batch, -1, -1, -1)
