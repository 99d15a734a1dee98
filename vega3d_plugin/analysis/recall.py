"""Probe3D's correspondence: nearest neighbours of features at every pixel with depth, and where they should have lain.

Source of the definitions: mbanani/probe3d, ``evals/utils/correspondence.py`` (``estimate_correspondence_depth`` and
what it calls) and ``evaluate_scannet_correspondence.py``. There the pictures are 640x480 and depth a quarter of that,
so an error of 10 pixels is one of 40 pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .adjacent import check_finite

#: Matches that count of two views, the most distinct ones.
MATCHES = 1000
#: Pixels of the scaled picture within which a match is right.
WITHIN = (5.0, 10.0, 20.0)
_SMALLEST = 1e-9
_ROWS = 2048  # points that are compared with all others at once


@dataclass(frozen=True, eq=False)
class PixelMatches:
    """Matches of two views, the most distinct first.

    Attributes:
        weight: 1 minus the ratio of the distances to the nearest and the second nearest neighbour ``[n]``.
        error: pixels of the second view, at the size of its depth, between the match and where the point lies ``[n]``.
    """

    weight: Tensor
    error: Tensor

    def recall(self, within: Sequence[float] = WITHIN) -> dict[float, float]:
        """The share of matches with an error below each number of pixels; NaN where there are none."""
        return {limit: float((self.error < limit).double().mean()) for limit in within}


@dataclass(frozen=True, eq=False)
class DepthPixels:
    """Every pixel of a view that has depth.

    Attributes:
        points: in the camera's frame ``[n, 3]``, metres.
        pixels: (x, y) ``[n, 2]`` from the top left corner of the depth map, so that centres are at halves.
        size: (height, width) of the depth map.
    """

    points: Tensor
    pixels: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, depth: Tensor, intrinsics: Tensor) -> DepthPixels:
        """From depth ``[H, W]``, 0 where not measured, and intrinsics for pixels with their centres at halves."""
        height, width = depth.shape
        y, x = torch.meshgrid(
            torch.arange(height, dtype=depth.dtype) + 0.5, torch.arange(width, dtype=depth.dtype) + 0.5, indexing="ij"
        )
        known = depth.flatten() > 0
        pixels = torch.stack([x, y], dim=-1).flatten(0, 1)[known]
        rays = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1)
        points = (rays * depth.flatten()[known][:, None]) @ torch.linalg.inv(intrinsics).T
        return cls(points, pixels, (height, width))

    def features(self, maps: Tensor) -> Tensor:
        """Bilinear samples ``[n, C]`` of a map ``[C, h, w]`` that covers the same picture."""
        places = self.pixels.to(maps) * 2 / maps.new_tensor([self.size[1], self.size[0]]) - 1
        return F.grid_sample(maps[None], places[None, None], align_corners=False)[0, :, 0].T


def match_pixels(
    maps: tuple[Tensor, Tensor],
    views: tuple[DepthPixels, DepthPixels],
    intrinsics: Tensor,
    first_to_second: Tensor,
    matches: int = MATCHES,
) -> PixelMatches:
    """Match every pixel of the first view with the nearest of the second, and keep the most distinct matches.

    Args:
        maps: features of both views, ``[C, h, w]`` each.
        views: their pixels with depth.
        intrinsics: ``[3, 3]`` of the second view's pixels, centres at halves.
        first_to_second: ``[3, 4]`` or ``[4, 4]``, from the first camera's frame to the second's.
        matches: how many to keep.

    Raises:
        AnalysisError: features that are not finite.
    """
    check_finite(torch.cat([maps[0].flatten(), maps[1].flatten()]), "a pair of views")
    weight, nearest = _nearest(*(view.features(part.float()) for view, part in zip(views, maps, strict=True)))
    weight, first = torch.topk(weight, min(matches, len(weight)))
    truth = projected(views[0].points, intrinsics, first_to_second)[first.cpu()]
    found = _pixels(views[1].points[nearest[first].cpu()] @ intrinsics.to(views[1].points).T)
    return PixelMatches(weight, torch.linalg.vector_norm(truth - found, dim=-1))


def same_pixel(views: tuple[DepthPixels, DepthPixels], intrinsics: Tensor, first_to_second: Tensor) -> PixelMatches:
    """The control that looks at no feature: every pixel of the first view matched with the same one of the second."""
    target = projected(views[0].points, intrinsics, first_to_second)
    error = torch.linalg.vector_norm(target - views[0].pixels.to(target), dim=-1)
    return PixelMatches(torch.zeros_like(error), error)


def projected(points: Tensor, intrinsics: Tensor, first_to_second: Tensor) -> Tensor:
    """Pixels ``[n, 2]`` of the second view where it would show points ``[n, 3]`` of the first camera's frame."""
    motion = first_to_second.to(points)
    return _pixels((points @ motion[:3, :3].T + motion[:3, 3]) @ intrinsics.to(points).T)


def _pixels(rays: Tensor) -> Tensor:
    return rays[:, :2] / rays[:, 2:].clamp(min=_SMALLEST)


def _nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``first`` how distinct its nearest row of ``second`` is, and which one that is."""
    one, two = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    weights, indices = [], []
    for rows in one.split(_ROWS):
        index = (rows @ two.T).topk(min(2, len(two)), dim=-1).indices
        # Once more, since a matrix product rounds what is left of 1 too roughly.
        distance = (1 - F.cosine_similarity(two[index], rows[:, None], dim=-1)).clamp(min=_SMALLEST)
        weights.append(1 - distance[:, 0] / distance[:, -1])
        indices.append(index[:, 0])
    return torch.cat(weights), torch.cat(indices)
