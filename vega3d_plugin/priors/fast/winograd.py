"""3x3 convolutions of the Wan VAE with a quarter of the multiplications (Winograd's algorithm).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of 4x4 outputs takes 36
products for each pair of channels in place of 144; with 3 taps in time, 4 frames of tiles take 216 in place of 1728.
The points of interpolation are those with the least rounding among small powers of two: 2.5e-6 of the largest value for
one convolution in float32, where a direct one has 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .reduction import Reduction, replace

#: Outputs of a tile in height and width.
_TILE = 4
#: Inputs of a tile in height and width.
_SEEN = _TILE + 2
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
#: With fewer channels the transforms cost more than the products they save.
_FEWEST_CHANNELS = 64
#: Smaller maps are mostly edge.
_SMALLEST_SIDE = 16
#: Transformed values of a strip: from 4 MB of float32, near the processor, to 16 MB where the kernel is larger, which
#: each strip goes through once.
_STRIP = 1 << 20
_LARGEST_STRIP = 1 << 22


class WinogradConv(nn.Module):
    """diffusers' ``WanCausalConv3d``, 3x3 in space, by Winograd's algorithm in float32 on a CPU.

    A single frame without earlier ones needs the kernel's last slice in time alone, as in
    :class:`~vega3d_plugin.priors.fast.single_frame_vae.SingleFrameConv`. Elsewhere it is what it stands for.

    Args:
        conv: ``WanCausalConv3d``, or what stands for it already; it shares its parameters.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        # In a list, so that it is no submodule and its parameters have one name.
        self._conv = [conv]
        self.eval()

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H, W]``."""
        weight, frames = self.weight, _frames(x)
        if cache_x is None and x.shape[2] == 1:
            weight = weight[:, :, -1:]
        elif x.shape[0] == 1:
            before = weight.shape[2] - 1
            earlier = [] if cache_x is None else _frames(cache_x)[-before:]
            frames = [*[None] * (before - len(earlier)), *earlier, *frames]
        steps = x.shape[0] * x.shape[2]
        if not self._gains(x) or len(frames) - weight.shape[2] + 1 != steps:
            whole: Tensor = self._conv[0](x, cache_x)
            return whole
        out = convolved(frames, transformed(weight, steps), self.bias, steps)
        made: Tensor = out.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 4, 1, 2, 3)
        return made

    def _gains(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        return x.device.type == "cpu" and x.dtype == torch.float32 and min(x.shape[-2:]) >= _SMALLEST_SIDE


class _Workspace:
    """Memory of one convolution, which its strips use in turn: fresh memory costs more than what is done in it."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._held = like, dict[str, Tensor]()

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, with what was left in it; until the next one of that name."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = self._like.new_empty(size)
        return held[:size].view(shape)

    def filled(self, name: str, values: Tensor) -> Tensor:
        """A contiguous copy."""
        return self.take(name, *values.shape).copy_(values)


def _frames(x: Tensor) -> list[Tensor | None]:
    """``[B, C, T, H, W]`` to ``B * T`` frames ``[H, W, C]``."""
    return [frame for clip in x.permute(0, 2, 3, 4, 1) for frame in clip]


def transformed(weight: Tensor, steps: int) -> Tensor:
    """A kernel ``[O, C, K, 3, 3]`` as :func:`convolved` multiplies by it, for so many output frames.

    ``[K, 36, C, O]``; ``[6, 36, C, O]`` where 3 taps in time are interpolated as those in space are.
    """
    out, channels, taps = weight.shape[:3]
    line, _, _ = _line()
    rows = weight.permute(3, 4, 2, 1, 0).reshape(9, -1)
    planes = torch.mm(torch.kron(line, line), rows).view(_SEEN**2, taps, -1)
    if _in_time(taps, steps):
        planes = torch.matmul(line, planes)
    planes = planes.view(*planes.shape[:2], channels, out)
    return planes.transpose(0, 1)


def convolved(frames: Sequence[Tensor | None], kernel: Tensor, bias: Tensor | None, steps: int) -> Tensor:
    """A 3x3 convolution with a border of zeros, over ``K`` frames in time, without a border there.

    Args:
        frames: ``steps + K - 1`` of ``[H, W, C]``; None is one of zeros. The last one is there.
        kernel: as :func:`transformed` gives it.
        bias: ``[O]``.
        steps: output frames.

    Returns:
        ``[steps, H, W, O]``.
    """
    assert frames[-1] is not None
    height, width, channels = frames[-1].shape
    outputs = kernel.shape[-1]
    in_time = _in_time(len(frames) - steps + 1, steps)
    group = _TILE if in_time else steps
    seen = len(frames) - steps + group
    down, across = -(-height // _TILE), -(-width // _TILE)
    per_row = _SEEN**2 * across * (seen * channels + (seen if in_time else group) * outputs)
    rows = max(1, min(max(_STRIP, kernel.numel()), _LARGEST_STRIP) // per_row)
    work = _Workspace(kernel)
    out = kernel.new_empty(steps, down, _TILE, across, _TILE, outputs)
    for top in range(0, down, rows):
        some = min(rows, down - top)
        for first in range(0, steps, group):
            strip = work.take("strip", seen, some * _TILE + 2, across * _TILE + 2, channels).zero_()
            _fill(strip, frames[first : first + seen], top * _TILE)
            made = _interpolated(strip, kernel, work) if in_time else _added_up(strip, kernel, group, work)
            target = out[first : first + group, top : top + some]
            target.copy_(made) if bias is None else torch.add(made, bias, out=target)
    # Whole maps, which the norms go through in one pass; nothing is copied where tiles fill them.
    return out.view(steps, down * _TILE, across * _TILE, outputs)[:, :height, :width].contiguous()


def _in_time(taps: int, steps: int) -> bool:
    return taps == 3 and steps % _TILE == 0


def _interpolated(strip: Tensor, kernel: Tensor, work: _Workspace) -> Tensor:
    """6 frames to 4: in time they are transformed before space on the way in, and behind it on the way out."""
    _, tiles, outputs = _line()
    moved = work.take("moved", *strip.shape)
    torch.mm(tiles, strip.flatten(1), out=moved.flatten(1))
    values = _tiles(moved, work)
    factors = kernel.transpose(0, 1).flatten(0, 1)
    products = work.take("products", *values.shape[:-1], factors.shape[-1])
    torch.bmm(values.flatten(0, 1).flatten(1, 2), factors, out=products.flatten(0, 1).flatten(1, 2))
    made = work.filled("untimed", _untiled(products, work))
    timed = work.take("timed", _TILE, *made.shape[1:])
    torch.mm(outputs, made.flatten(1), out=timed.flatten(1))
    return timed


def _added_up(strip: Tensor, kernel: Tensor, steps: int, work: _Workspace) -> Tensor:
    """One product for each tap in time; their sum."""
    values = _tiles(strip, work)
    products = work.take("products", len(values), steps, *values.shape[2:-1], kernel.shape[-1])
    summed = products.flatten(1, 3)
    for tap, plane in enumerate(kernel):
        part = values[:, tap : tap + steps].flatten(1, 3)
        torch.baddbmm(summed, part, plane, out=summed) if tap else torch.bmm(part, plane, out=summed)
    return _untiled(products, work)


def _fill(strip: Tensor, frames: Sequence[Tensor | None], top: int) -> None:
    """The rows that the tiles from output row ``top`` see, into zeros ``[N, rows + 2, width + 2, C]``."""
    for place, frame in zip(strip, frames, strict=True):
        if frame is not None:
            first, last = max(top - 1, 0), min(top - 1 + place.shape[0], frame.shape[0])
            place[first - top + 1 : last - top + 1, 1 : frame.shape[1] + 1] = frame[first:last]


def _tiles(strip: Tensor, work: _Workspace) -> Tensor:
    """``[N, 4 * down + 2, 4 * across + 2, C]`` to transformed tiles ``[36, N, down, across, C]``."""
    _, tiles, _ = _line()
    high = work.filled("high", strip.unfold(1, _SEEN, _TILE).permute(4, 0, 1, 2, 3))
    lines = work.take("lines", *high.shape)
    torch.mm(tiles, high.flatten(1), out=lines.flatten(1))
    wide = work.filled("wide", lines.unfold(3, _SEEN, _TILE).permute(0, 5, 1, 2, 3, 4))
    values = work.take("values", *wide.shape)
    torch.matmul(tiles, wide.flatten(2), out=values.flatten(2))
    return values.flatten(0, 1)


def _untiled(products: Tensor, work: _Workspace) -> Tensor:
    """``[36, N, down, across, O]`` to tiles of outputs ``[N, down, 4, across, 4, O]``; a view."""
    _, _, outputs = _line()
    shape = products.shape[1:]
    lines = work.take("out lines", _TILE, _SEEN, math.prod(shape))
    torch.mm(outputs, products.view(_SEEN, -1), out=lines.flatten(1))
    made = work.take("made", _TILE, _TILE, math.prod(shape))
    torch.matmul(outputs, lines, out=made)
    return made.view(_TILE, _TILE, *shape).permute(2, 3, 0, 4, 1, 5)


@lru_cache(maxsize=1)
def _line() -> tuple[Tensor, Tensor, Tensor]:
    """Of kernels ``[6, 3]``, of tiles ``[6, 6]``, of outputs ``[4, 6]``: interpolation at :data:`_POINTS`.

    A product of polynomials is known by its values at as many points, infinity being one; the convolution is the
    transpose of that.
    """
    with torch.inference_mode(False):
        points = torch.tensor(_POINTS, dtype=torch.float64)
        powers = points[:, None] ** torch.arange(_SEEN)
        kernels, tiles, outputs = (torch.zeros(shape, dtype=torch.float64) for shape in ((6, 3), (6, 6), (4, 6)))
        outputs[:, :-1] = powers[:, :_TILE].T
        outputs[-1, -1] = kernels[-1, -1] = 1
        for index in range(len(points)):
            others = torch.cat([points[:index], points[index + 1 :]])
            kernels[index] = powers[index, :3] / (points[index] - others).prod()
            tiles[index, :-1] = _from_roots(others)
            # Both of one size, so that neither rounds much coarser than the other: by a power of two, without loss.
            scale = 2 ** torch.round(torch.log2(kernels[index].abs().sum() / tiles[index].abs().sum()) / 2)
            tiles[index] *= scale
            kernels[index] /= scale
        tiles[-1] = _from_roots(points)
        return kernels.float(), tiles.float(), outputs.float()


def _from_roots(roots: Tensor) -> Tensor:
    """Coefficients of ``prod(x - root)``, lowest power first."""
    found = roots.new_ones(1)
    for root in roots:
        nothing = found.new_zeros(1)
        found = torch.cat([nothing, found]) - root * torch.cat([found, nothing])
    return found


def _fits(conv: Any) -> bool:
    inner = conv._conv[0] if hasattr(conv, "_conv") else conv
    left, right, top, bottom, before, after = inner._padding
    taps = inner.weight.shape[2]
    return bool(
        inner.weight.shape[3:] == (3, 3)
        and (left, right, top, bottom, after) == (1, 1, 1, 1, 0)
        and before == taps - 1
        and set(inner.stride) == set(inner.dilation) == {1}
        and inner.groups == 1
        and min(inner.weight.shape[:2]) >= _FEWEST_CHANNELS
    )


def _apply(prior: Any) -> None:
    replace(
        prior.models["vae"].encoder,
        ("WanCausalConv3d", "SingleFrameConv"),
        lambda conv: WinogradConv(conv) if _fits(conv) else conv,
    )


WINOGRAD_VAE = Reduction(
    "winograd_vae",
    "A 3x3 convolution needs 36 products for 4x4 outputs in place of 144, and 3 taps in time 6 in place of 12 "
    "(Winograd's algorithm): equal in exact arithmetic, in float32 within 1e-5. Holds in every context, and does "
    "something in float32 on a CPU.",
    _apply,
)
