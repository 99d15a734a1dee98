"""From depth pixels to points in the world and back: point maps, resizing, pooling, projection, visibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SceneError
from .scene import Scene, View

Preset = Literal["released"]
#: Side of the square that the released code squashes pictures and coordinates to.
RELEASED_SIDE = 384


@dataclass(frozen=True, eq=False)
class PointMap:
    """The world point that each pixel shows.

    Attributes:
        points: float32 ``[..., H, W, 3]`` metres; a pixel without depth lies at its camera's centre, as released.
        valid: bool ``[..., H, W]``, where depth was measured.
    """

    points: Tensor
    valid: Tensor

    def resized(self, size: tuple[int, int]) -> PointMap:
        """Each pixel the nearest one, aspect ratio not kept; as ``cv2.resize`` with ``INTER_NEAREST``."""
        return PointMap(_nearest(self.points, size), _nearest(self.valid[..., None], size)[..., 0])

    def covering(self, size: tuple[int, int]) -> PointMap:
        """Resized to cover ``size`` (height, width) by nearest neighbour, then cut to it about the centre.

        The released ``_resize_center_crop_coords`` in ``wan_t2v_adjacent_correspondence_matching.py``: the part of
        the picture that a prior of that size sees.
        """
        height, width = self.valid.shape[-2:]
        scale = max(size[0] / height, size[1] / width)
        grown = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = max(0, (grown[0] - size[0]) // 2), max(0, (grown[1] - size[1]) // 2)
        whole = self.resized(grown)
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        return PointMap(whole.points[..., rows, columns, :], whole.valid[..., rows, columns])

    def pooled(self, grid: tuple[int, int], preset: Preset | None = None) -> TokenPoints:
        """The mean point of each cell of a token grid (adaptive average pooling).

        Args:
            grid: (h, w).
            preset: ``released``: pixels without depth are averaged in, at the camera's centre. By default they are
                left out.
        """
        share = _pool(self.valid[..., None].float(), grid)[..., 0]
        if preset == "released":
            return TokenPoints(_pool(self.points, grid), share)
        mean = _pool(self.points * self.valid[..., None], grid)
        return TokenPoints(mean / share.clamp(min=1e-12)[..., None] * (share > 0)[..., None], share)


@dataclass(frozen=True, eq=False)
class TokenPoints:
    """The world point of each token.

    Attributes:
        points: float32 ``[..., h, w, 3]`` metres; 0 where no pixel of the token has depth (by default).
        measured: float32 ``[..., h, w]``, the share of the token's pixels that have depth.
    """

    points: Tensor
    measured: Tensor

    def valid(self, threshold: float = 0.1) -> Tensor:
        """Tokens of which at least this share is measured; 0.1 as released."""
        return self.measured >= threshold


def camera_points(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """What each pixel shows, in the camera's frame.

    ``x = (u - cx) z / fx``, ``y = (v - cy) z / fy`` with whole pixels u, v (``video_utils.py::unproject``).

    Args:
        depth: ``[..., H, W]`` metres.
        intrinsics: ``[3, 3]`` for the pixels of ``depth``.

    Returns:
        ``[..., H, W, 3]``, of depth's dtype.
    """
    height, width = depth.shape[-2:]
    matrix = intrinsics.to(depth)
    v, u = torch.meshgrid(
        torch.arange(height, dtype=depth.dtype, device=depth.device),
        torch.arange(width, dtype=depth.dtype, device=depth.device),
        indexing="ij",
    )
    y = (v - matrix[1, 2]) * depth / matrix[1, 1]
    x = (u - matrix[0, 2]) * depth / matrix[0, 0]
    if float(matrix[0, 1]) != 0:
        x = x - matrix[0, 1] * y / matrix[0, 0]
    return torch.stack([x, y, depth], dim=-1)


def to_world(points: Tensor, pose: Tensor) -> Tensor:
    """``[..., 3]`` in the camera's frame to the world, by its camera-to-world pose ``[4, 4]``."""
    matrix = pose.to(points)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def point_map(view: View, alignment: Tensor | None = None) -> PointMap:
    """World points of a view's depth pixels, ``[Hd, Wd]``.

    Args:
        view: with depth, pose and intrinsics.
        alignment: ``[4, 4]``, applied after the pose.

    Raises:
        SceneError: the view lacks one of them.
    """
    depth = view.depth()
    intrinsics = None if depth is None else view.intrinsics_of_depth(depth.shape)
    lacking = [
        name for name, value in (("depth", depth), ("intrinsics", intrinsics), ("a pose", view.pose)) if value is None
    ]
    if depth is None or intrinsics is None or view.pose is None:
        raise SceneError(f"View {view.name!r} has no world coordinates: it lacks {' and '.join(lacking)}.")
    pose = view.pose if alignment is None else alignment @ view.pose
    return PointMap(to_world(camera_points(depth, intrinsics), pose), depth > 0)


def point_maps(scene: Scene, aligned: bool = True) -> PointMap:
    """World points of all views, ``[T, Hd, Wd]``; in the axis-aligned world where the scene knows it.

    Raises:
        SceneError: depth, intrinsics or poses are missing, or depth maps differ in size.
    """
    scene.require("depth", "intrinsics", "pose")
    maps = [point_map(view, scene.alignment if aligned else None) for view in scene.views]
    odd = next((i for i, each in enumerate(maps) if each.valid.shape != maps[0].valid.shape), None)
    if odd is not None:
        sizes = " and ".join(f"{list(maps[i].valid.shape)} ({scene.views[i].name!r})" for i in (0, odd))
        raise SceneError(f"Scene {scene.name!r} ({scene.source}) has depth maps of different sizes: {sizes}.")
    return PointMap(torch.stack([each.points for each in maps]), torch.stack([each.valid for each in maps]))


def token_points(
    scene: Scene, grid: tuple[int, int], size: tuple[int, int] | None = None, preset: Preset | None = None
) -> TokenPoints:
    """The world point of every token that a model makes of the scene's views, ``[T, h, w]``.

    Args:
        scene: with depth, intrinsics and poses.
        grid: (h, w) tokens of a view.
        size: (height, width) that pictures are resized to cover and cropped to; None: the model sees all of them.
        preset: ``released`` without ``size``: squashed to 384x384 and averaged over 27x27 cells from the top left, as
            the released host's position embedding does with a 14x14 grid; pixels without depth take part.

    Raises:
        SceneError: see :func:`point_maps`.
    """
    maps = point_maps(scene)
    if size is not None:
        maps = maps.covering(size)
    elif preset == "released":
        maps = maps.resized((RELEASED_SIDE, RELEASED_SIDE))
        rows, columns = (RELEASED_SIDE // side * side for side in grid)
        maps = PointMap(maps.points[..., :rows, :columns, :], maps.valid[..., :rows, :columns])
    return maps.pooled(grid, preset)


def project(points: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Where a camera sees world points.

    Args:
        points: ``[..., 3]`` metres in the world of ``pose``.
        intrinsics: ``[3, 3]``.
        pose: ``[4, 4]`` camera-to-world.

    Returns:
        Pixels (u, v) ``[..., 2]`` (the centre of the top left one is (0, 0)), and the distance along the camera's z
        axis ``[...]``; what lies behind the camera has a distance of at most 0, and pixels without meaning.
    """
    matrix, camera = pose.to(points), intrinsics.to(points)
    seen = (points - matrix[:3, 3]) @ matrix[:3, :3]
    z = seen[..., 2]
    ahead = torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)
    x, y = seen[..., 0] / ahead, seen[..., 1] / ahead
    u = camera[0, 0] * x + camera[0, 1] * y + camera[0, 2]
    v = camera[1, 1] * y + camera[1, 2]
    return torch.stack([u, v], dim=-1), z


def visible(points: Tensor, view: View, depth: Tensor | None = None, tolerance: float = 0.05) -> tuple[Tensor, Tensor]:
    """Which world points a view truly sees: inside its depth map, ahead of it, and not behind something nearer.

    A point counts when the depth measured at its nearest pixel agrees with its distance within ``tolerance`` metres
    or 2% of the distance, whichever is more. Where nothing was measured nothing is known, so the point does not count.

    Args:
        points: ``[..., 3]`` in the world of the view's pose (without the scene's alignment).
        view: with depth, intrinsics and pose.
        depth: the view's depth, where the caller holds it already.
        tolerance: metres.

    Returns:
        bool ``[...]``, and the pixels of the depth map ``[..., 2]`` (u, v).

    Raises:
        SceneError: the view lacks depth, intrinsics or a pose.
    """
    depth = view.depth() if depth is None else depth
    intrinsics = None if depth is None else view.intrinsics_of_depth(depth.shape)
    if depth is None or intrinsics is None or view.pose is None:
        raise SceneError(f"View {view.name!r}: what it sees is only known with depth, intrinsics and a pose.")
    pixels, distance = project(points, intrinsics, view.pose)
    measured = sample_nearest(depth.to(points), pixels)
    agrees = (measured - distance).abs() <= torch.clamp(0.02 * distance, min=tolerance)
    return (distance > 0) & (measured > 0) & agrees, pixels


def sample_nearest(plane: Tensor, pixels: Tensor) -> Tensor:
    """Values ``[...]`` of ``plane`` ``[H, W]`` at the pixels ``[..., 2]`` (u, v) nearest to those given; 0 outside."""
    height, width = plane.shape
    # A point just ahead of the camera's plane lands millions of pixels away, beyond what an integer holds.
    u, v = (
        pixels[..., axis].nan_to_num(-2.0).clamp(-2, side + 1).round().long()
        for axis, side in ((0, width), (1, height))
    )
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return torch.where(inside, plane[v.clamp(0, height - 1), u.clamp(0, width - 1)], torch.zeros_like(plane[0, 0]))


def _nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """``[..., H, W, C]`` to ``[..., *size, C]``."""
    *ahead, height, width, channels = values.shape
    planes = values.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    if values.dtype == torch.bool:
        return _nearest(values.float(), size) > 0.5
    resized = F.interpolate(planes, size=tuple(size), mode="nearest")
    return resized.permute(0, 2, 3, 1).reshape(*ahead, *size, channels)


def _pool(values: Tensor, grid: tuple[int, int]) -> Tensor:
    *ahead, height, width, channels = values.shape
    planes = values.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(planes, grid).permute(0, 2, 3, 1).reshape(*ahead, *grid, channels)
