"""The published dense head: four layers of tokens to a map of any size.

Source: ``vidfm3d/models/components/dpt_head.py``, after "Vision Transformers for Dense Prediction" (arXiv 2103.13413).
Parameters have the released names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointDepthHead(nn.Module):
    """Tokens of four layers, brought to four resolutions and fused from the coarsest to the finest.

    Args:
        dim: channels of the tokens.
        outputs: channels of the map.
        features: width of the fusion.
        stages: channels of the four resolutions, finest first.
    """

    def __init__(self, dim: int, outputs: int, features: int = 256, stages: Sequence[int] = (256, 512, 1024, 1024)):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, stage, 1) for stage in stages)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(stages[0], stages[0], 4, stride=4),
                nn.ConvTranspose2d(stages[1], stages[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(stages[3], stages[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.Module()
        for i, stage in enumerate(stages, start=1):
            self.scratch.add_module(f"layer{i}_rn", nn.Conv2d(stage, features, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{i}", _Fusion(features, coarsest=i == len(stages)))
        self.scratch.add_module("output_conv1", nn.Conv2d(features, features // 2, 3, padding=1))
        last = nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))
        self.scratch.add_module("output_conv2", last)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Four layers of tokens ``[B, S, h * w, D]`` to a map ``[B, S, H, W, outputs]`` of ``size``.

        Args:
            layers: from the first to the last.
            grid: (h, w) of the tokens.
            size: (H, W) of the map.
        """
        batch, views = layers[0].shape[:2]
        aspect = size[1] / size[0]
        maps = []
        for i, tokens in enumerate(layers):
            x = self.norm(tokens).flatten(0, 1).transpose(1, 2).unflatten(2, grid)
            x = self.resize_layers[i](_placed(self.projects[i](x), aspect))
            maps.append(self.scratch.get_submodule(f"layer{i + 1}_rn")(x))
        out: Tensor | None = None
        for i in reversed(range(len(maps))):
            target = (maps[i - 1].shape[-2], maps[i - 1].shape[-1]) if i else None
            out = self.scratch.get_submodule(f"refinenet{i + 1}")(maps[i], out, target)
        assert out is not None
        out = self.scratch.get_submodule("output_conv1")(out)
        out = F.interpolate(out, size, mode="bilinear", align_corners=True)
        out = self.scratch.get_submodule("output_conv2")(_placed(out, aspect))
        found: Tensor = out.permute(0, 2, 3, 1).unflatten(0, (batch, views))
        return found


class _Fusion(nn.Module):
    def __init__(self, width: int, coarsest: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        if not coarsest:
            self.resConfUnit1 = _Residual(width)
        self.resConfUnit2 = _Residual(width)

    def forward(self, layer: Tensor, below: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        x = layer if below is None else below + self.resConfUnit1(layer)
        x = self.resConfUnit2(x)
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        out: Tensor = self.out_conv(F.interpolate(x, size, mode="bilinear", align_corners=True))
        return out


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Released, the first activation works in place, so what is added at the end is the rectified input.
        x = x.relu()
        out: Tensor = x + self.conv2(self.conv1(x).relu())
        return out


def _placed(x: Tensor, aspect: float) -> Tensor:
    """A map ``[B, C, h, w]`` plus a tenth of the sine and cosine of each place, in a frame of this aspect ratio."""
    channels, height, width = x.shape[1:]
    diagonal = (aspect**2 + 1) ** 0.5
    axes = []
    for side, count in ((aspect / diagonal, width), (1 / diagonal, height)):
        edge = side * (count - 1) / count
        places = torch.linspace(-edge, edge, count, device=x.device, dtype=torch.double)
        rates = 100.0 ** -(torch.arange(channels // 4, device=x.device, dtype=torch.double) / (channels / 4))
        angles = places[:, None] * rates
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1).T)
    columns = axes[0][:, None, :].expand(-1, height, -1)
    rows = axes[1][:, :, None].expand(-1, -1, width)
    return x + 0.1 * torch.cat([columns, rows]).to(x.dtype)
