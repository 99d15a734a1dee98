"""A stand-in for the package ``vggt``, which tests do not install: the same interface, small."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

DIM, DEPTH, PATCH, SPECIAL = 12, 3, 14, 3


class Block(nn.Module):
    """Attends across all tokens of a row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        return tokens + nn.functional.scaled_dot_product_attention(q, k, v)


class Aggregator(nn.Module):
    """``[B, S, 3, H, W]`` in [0, 1] to one ``[B, S, special + patches, 2 * dim]`` for each pair of blocks."""

    def __init__(self, dim: int = DIM, depth: int = DEPTH, patch_size: int = PATCH, aa_block_size: int = 1) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.frame_blocks = nn.ModuleList([Block(dim) for _ in range(depth)])
        self.global_blocks = nn.ModuleList([Block(dim) for _ in range(depth)])
        self.patch_size, self.aa_block_size, self.aa_block_num = patch_size, aa_block_size, depth // aa_block_size
        # The first frame of a window has its own.
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.randn(1, 2, SPECIAL - 1, dim))
        for name in ("_resnet_mean", "_resnet_std"):
            self.register_buffer(name, torch.tensor([0.4, 0.5, 0.6]).view(1, 1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], int]:
        batch, views = images.shape[:2]
        images = (images - self._resnet_mean) / self._resnet_std
        patches = self.patch_embed(images.view(batch * views, *images.shape[2:])).flatten(2).transpose(1, 2)
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, views - 1, -1, -1)], dim=1)
        special = special.expand(batch, -1, -1, -1).flatten(0, 1)
        tokens = torch.cat([special, patches], dim=1)
        count, dim = tokens.shape[1:]
        out = []
        for group in range(self.aa_block_num):
            pairs = range(group * self.aa_block_size, (group + 1) * self.aa_block_size)
            alone, jointly = [], []
            for index in pairs:
                tokens = self.frame_blocks[index](tokens.view(batch * views, count, dim))
                alone.append(tokens.view(batch, views, count, dim))
            for index in pairs:
                tokens = self.global_blocks[index](tokens.view(batch, views * count, dim))
                jointly.append(tokens.view(batch, views, count, dim))
            out += [torch.cat(pair, dim=-1) for pair in zip(alone, jointly, strict=True)]
        return out, SPECIAL


class VGGT(nn.Module):
    """With a head, which nobody needs."""

    def __init__(self, img_size: int = 518, patch_size: int = PATCH, embed_dim: int = DIM) -> None:
        super().__init__()
        self.aggregator = Aggregator(embed_dim, patch_size=patch_size)
        self.depth_head = nn.Linear(2 * embed_dim, 1)


@contextmanager
def installed(**classes: Any) -> Iterator[None]:
    """As if ``vggt.models.vggt`` could be imported."""
    names = ("vggt", "vggt.models", "vggt.models.vggt")
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = ModuleType(name)
    for key, value in {"VGGT": VGGT, **classes}.items():
        setattr(sys.modules[names[-1]], key, value)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
