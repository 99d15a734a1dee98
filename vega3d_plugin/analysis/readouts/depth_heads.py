"""probe3d's depth heads: a layer or four of features to metres (``evals/models/probes.py``).

Parameters have the released names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import AnalysisError

HeadKind = Literal["linear", "dpt"]
NEAREST, FURTHEST, BINS = 0.001, 10.0, 256


def depth_from_bins(weights: Tensor, nearest: float = NEAREST, furthest: float = FURTHEST) -> Tensor:
    """Mean of evenly spaced depths, weighted by rectified scores plus 0.1.

    Args:
        weights: scores ``[B, bins, H, W]``.
        nearest, furthest: metres, of the first and the last bin.

    Returns:
        ``[B, 1, H, W]`` in metres.
    """
    shares = weights.relu() + 0.1
    shares = shares / shares.sum(dim=1, keepdim=True)
    depths = torch.linspace(nearest, furthest, weights.shape[1], device=weights.device, dtype=weights.dtype)
    return torch.einsum("bkhw,k->bhw", shares, depths)[:, None]


def depth_from_sigmoid(scores: Tensor, nearest: float = NEAREST, furthest: float = FURTHEST) -> Tensor:
    """Scores ``[B, 1, H, W]`` to metres ``[B, 1, H, W]`` between ``nearest`` and ``furthest``."""
    return nearest + scores.sigmoid() * (furthest - nearest)


class DepthHead(nn.Module):
    """Features of one or four layers to depth.

    Args:
        dims: channels of each layer; ``dpt`` takes four.
        kind: ``linear``: the layers side by side, enlarged four times, one convolution. ``dpt``: from the last layer
            to the first, enlarged sixteen times.
        hidden: width of ``dpt``.
        kernel: side of the convolutions; ``dpt`` was published with 3, ``linear`` with 1.
        bins: depths to weigh, over 0.001 to 10 m; 0 for one number through a sigmoid.

    Raises:
        AnalysisError: ``dpt`` without four layers.
    """

    def __init__(
        self, dims: Sequence[int], kind: HeadKind = "linear", hidden: int = 512, kernel: int = 1, bins: int = BINS
    ) -> None:
        super().__init__()
        outputs = bins or 1
        self.bins = bins
        if kind == "dpt" and len(dims) != 4:
            raise AnalysisError(f"A dpt head takes four layers, found {len(dims)}. Give four taps, or head='linear'.")
        self.head = _Linear(dims, outputs, kernel) if kind == "linear" else _Dpt(dims, outputs, hidden, kernel)
        self.reset(0)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Layers ``[B, C, h, w]`` of one size to metres ``[B, 1, H, W]``: 4 times that size, 16 times with ``dpt``."""
        scores = self.head(layers)
        return depth_from_bins(scores) if self.bins else depth_from_sigmoid(scores)

    def reset(self, seed: int) -> None:
        """Initial weights of PyTorch's convolutions, drawn from a seed alone."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


class _Linear(nn.Module):
    def __init__(self, dims: Sequence[int], outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(sum(dims), outputs, kernel, padding=kernel // 2)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.conv(_enlarged(torch.cat(list(layers), dim=1), 4))
        return out


class _Dpt(nn.Module):
    def __init__(self, dims: Sequence[int], outputs: int, hidden: int, kernel: int) -> None:
        super().__init__()
        for i, dim in enumerate(dims):
            self.add_module(f"conv_{i}", nn.Conv2d(dim, hidden, 1))
            self.add_module(f"ref_{i}", _Refinement(hidden, kernel, first=i == len(dims) - 1))
        self.out_conv = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, outputs, 3, padding=1)
        )

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        out: Tensor | None = None
        for i in reversed(range(len(layers))):
            layer = _enlarged(self.get_submodule(f"conv_{i}")(layers[i]), 2)
            out = self.get_submodule(f"ref_{i}")(layer, out)
        assert out is not None
        return _enlarged(self.out_conv(_enlarged(out, 4)), 2)


class _Refinement(nn.Module):
    """One step of the way up: this layer, refined, plus what came from below, refined again."""

    def __init__(self, width: int, kernel: int, first: bool) -> None:
        super().__init__()
        if not first:
            self.resConfUnit1 = _Residual(width, kernel)
        self.resConfUnit2 = _Residual(width, kernel)

    def forward(self, layer: Tensor, below: Tensor | None) -> Tensor:
        if below is not None:
            layer = self.resConfUnit1(layer) + below
        out: Tensor = self.resConfUnit2(layer)
        return out


class _Residual(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.ReLU()]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + x
        return out
