"""Where a token lies in the world, and an embedding of it, for hosts that add it to their visual tokens.

Sources: ``llava/model/llava_arch.py`` and ``llava/model/position_encoding.py`` of VEGA-3D (as in Video-3D LLM). A
branch with ``positions="sin3d"`` adds it after the fusion; a training script may call it, as the released one does.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..contracts.clips import Clip
from ..contracts.errors import AlignmentError, SettingsError
from ..scenes.coordinates import PointMap

#: Bounds of the world that is discretised, in metres, and the side of a voxel.
LOWER, UPPER, VOXEL = (-15.0, -15.0, -5.0), (15.0, 15.0, 5.0), 0.1
TEMPERATURE = 10000.0
#: How the pixels of a patch become its points, and how many points that gives.
Reduction = Literal["avg", "minmax", "sample1", "sample5", "sample9"]
POINTS: dict[Reduction, int] = {"avg": 1, "minmax": 2, "sample1": 1, "sample5": 5, "sample9": 9}
MLP_WIDTH = 512


def patch_points(points: Tensor, patch: int = 27, how: Reduction = "avg") -> Tensor:
    """One or several world points for each patch of a picture.

    Rows and columns at the bottom and right that fill no whole patch are left out: with 384x384 pixels and patches of
    27, those from 378 on.

    Args:
        points: ``[V, H, W, 3]``, the world point of each pixel, in metres.
        patch: side of a patch in pixels; for ``sample*`` a multiple of 3.
        how: ``avg``: the mean point; ``minmax``: the least and the greatest value of each axis; ``sample9``: the
            pixels at the centres of a 3x3 raster, ``sample5``: every second of them (corners and centre),
            ``sample1``: the centre.

    Returns:
        ``[V, H // patch, W // patch, 3]``, or ``[..., n, 3]`` with n = 2, 5 or 9 points.

    Raises:
        AlignmentError: a shape that has no whole patch, or no coordinates.
        SettingsError: an unknown ``how``, or a patch that ``sample*`` cannot divide.
    """
    if how not in POINTS:
        raise SettingsError(f"how {how!r} is unknown; known: {', '.join(POINTS)}.")
    if points.ndim != 4 or points.shape[-1] != 3 or patch < 1 or min(points.shape[1:3]) < patch:
        raise AlignmentError(
            f"World points must be [V, H, W, 3] with at least one patch of {patch} pixels, found {list(points.shape)}."
        )
    views, rows, columns = points.shape[0], points.shape[1] // patch, points.shape[2] // patch
    if how == "avg":
        # Summed as released: a rounding error of a mean may move a token to the next voxel.
        return nn.functional.avg_pool2d(points.permute(0, 3, 1, 2), patch, patch).permute(0, 2, 3, 1)
    whole = points[:, : rows * patch, : columns * patch]
    cells = whole.reshape(views, rows, patch, columns, patch, 3).transpose(2, 3)
    if how == "minmax":
        return torch.stack([cells.amin(dim=(3, 4)), cells.amax(dim=(3, 4))], dim=3)
    if patch % 3:
        raise SettingsError(f"{how} takes the centres of a 3x3 raster, so a patch of {patch} must be a multiple of 3.")
    third = patch // 3
    nine = cells[:, :, :, third // 2 :: third, third // 2 :: third].reshape(views, rows, columns, 9, 3)
    if how == "sample1":
        return nine[..., 4, :]
    return nine if how == "sample9" else nine[..., ::2, :]


def token_places(points: PointMap, clip: Clip) -> Tensor:
    """The world point of each token of a clip, ``[t, h, w, 3]``: the mean of what its pixels show.

    The map is brought to the clip's size by nearest neighbour and cut into cells from the top left, as released: with
    384x384 pixels and a grid of 14x14, cells of 27x27. Pixels without depth are left out, where the released code has
    them at their camera's centre; a token without any depth lies there.

    Args:
        points: of each of the clip's frames, ``[T, H, W]``.
        clip: with ``T`` frames, of which ``T / t`` share a row of tokens.

    Raises:
        AlignmentError: the frames do not come out even, or are smaller than the grid.
    """
    grid, (frames, _, height, width) = clip.grid, clip.frames.shape
    side, rest = (height // grid.h, width // grid.w), frames % grid.t
    if rest or min(side) < 1 or len(points.valid) != frames:
        raise AlignmentError(
            f"{len(points.valid)} views of a clip of {frames} frames {height}x{width} have no places on a token grid "
            f"({grid.t}, {grid.h}, {grid.w})."
        )
    seen = points.resized((height, width))

    def means(values: Tensor) -> Tensor:
        cells: Tensor = nn.functional.avg_pool2d(values.permute(0, 3, 1, 2), side, side)[..., : grid.h, : grid.w]
        return cells.permute(0, 2, 3, 1).reshape(grid.t, -1, grid.h, grid.w, values.shape[-1]).mean(dim=1)

    share = means(seen.valid[..., None].float())
    measured = means(seen.points * seen.valid[..., None]) / share.clamp(min=1e-12)
    places: Tensor = torch.where(share > 0, measured, means(seen.points))
    return places


def discretised(
    points: Tensor,
    lower: tuple[float, float, float] = LOWER,
    upper: tuple[float, float, float] = UPPER,
    voxel: float = VOXEL,
) -> Tensor:
    """World points ``[..., 3]`` in metres to places on a raster, from 0, rounded half to even, without gradient.

    Points outside the bounds are moved onto them, as released.

    Raises:
        SettingsError: ``voxel`` is not positive.
    """
    if not voxel > 0:
        raise SettingsError(f"voxel must be a length in metres above 0, found {voxel}.")
    least, most = (torch.tensor(bound).to(points) for bound in (lower, upper))
    inside = torch.minimum(torch.maximum(points, least), most)
    return ((inside - least) / voxel).round().detach()


class SinusoidEmbedding(nn.Module):
    """``PositionEmbeddingSine3D``: sinusoids of x, y and z, one after the other; has no weights.

    An axis of a point has ``size // (3 * points_per_token)`` channels: sines on even, cosines on odd ones; channels
    that are left over are 0.

    Args:
        size: channels of a token.
        points_per_token: 1, or the n of ``[..., n, 3]``.
        temperature: the longest wave is about 2 pi times this.

    Raises:
        SettingsError: fewer channels than one for each axis of each point.
    """

    def __init__(self, size: int, points_per_token: int = 1, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if points_per_token < 1 or size < 3 * points_per_token:
            raise SettingsError(
                f"{points_per_token} points of 3 axes need at least {max(3, 3 * points_per_token)} channels, found "
                f"{size}."
            )
        self.size, self.points_per_token, self.temperature = size, points_per_token, temperature

    def forward(self, points: Tensor) -> Tensor:
        """``[..., 3]``, or ``[..., n, 3]`` where a token has n points, to ``[..., size]``."""
        points = _with_points(points, self.points_per_token)
        channels = self.size // (3 * self.points_per_token)
        place = torch.arange(channels, dtype=torch.float32, device=points.device)
        wave = self.temperature ** (2 * (place // 2) / channels)
        angle = points[..., None] / wave
        value = torch.where(place % 2 == 0, angle.sin(), angle.cos()).flatten(-3)
        return nn.functional.pad(value, (0, self.size - value.shape[-1])).to(points.dtype)


class MlpEmbedding(nn.Module):
    """``PositionEmbeddingMLP``: Linear, LayerNorm, ReLU, Linear of a point; names of weights as released (``mlp.0``).

    Args:
        size: channels of a token.

    The released class takes several points per token as well, and fails with them; this one takes one.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise SettingsError(f"size must be at least 1, found {size}.")
        self.mlp = nn.Sequential(
            nn.Linear(3, MLP_WIDTH), nn.LayerNorm(MLP_WIDTH), nn.ReLU(), nn.Linear(MLP_WIDTH, size)
        )

    def forward(self, points: Tensor) -> Tensor:
        """``[..., 3]`` to ``[..., size]``."""
        out: Tensor = self.mlp(_with_points(points, 1)[..., 0, :])
        return out


def _with_points(points: Tensor, count: int) -> Tensor:
    """``[..., n, 3]``."""
    given = tuple(points.shape[-1:] if count == 1 else points.shape[-2:])
    if given != ((3,) if count == 1 else (count, 3)) or not points.is_floating_point():
        form = "[..., 3]" if count == 1 else f"[..., {count}, 3]"
        raise AlignmentError(f"Points must be {form} of floats, found {list(points.shape)} of {points.dtype}.")
    return points[..., None, :] if count == 1 else points
