"""What is true of each token of a view: depth, point in the world and camera, where the prior looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import PriorSettings
from ...errors import ReadoutError
from ...scenes.scene import Scene, View
from .poses import encode_cameras

#: A view of which fewer tokens have depth cannot be read out.
LEAST_DEPTH = 0.1


@dataclass(frozen=True)
class Crop:
    """The part of a picture that a prior sees, in the picture's pixels; the top left corner of the picture is (0, 0).

    Attributes:
        top, left, height, width: pixels, not rounded.
    """

    top: float
    left: float
    height: float
    width: float


def seen_crop(size: tuple[int, int], settings: PriorSettings | None) -> Crop:
    """What a prior with these settings sees of a picture of ``size``; the whole of it when it has no size of its own.

    It repeats the arithmetic of ``priors.frames.resize_crop``, rounding included.
    """
    height, width = size
    if settings is None or settings.size is None or settings.resize != "crop":
        return Crop(0, 0, height, width)
    target = settings.size
    scale = max(target[0] / height, target[1] / width)
    covered = [max(1, round(side * scale)) for side in size]
    offsets = [max(0, (c - t) // 2) for c, t in zip(covered, target, strict=True)]
    (top, left), (rows, columns) = offsets, [min(t, c) for t, c in zip(target, covered, strict=True)]
    down, across = height / covered[0], width / covered[1]
    return Crop(top * down, left * across, rows * down, columns * across)


@dataclass(frozen=True, eq=False)
class SceneTruth:
    """The truth of a scene's views on one grid.

    Attributes:
        name, source, fingerprint: of the scene.
        depth: ``[T, h, w]`` float64, metres, at the centre of each token; 0 where there is none.
        points: ``[T, h, w, 3]`` float64, in the world, metres.
        extrinsics: ``[T, 3, 4]`` float64, world-to-camera.
        cameras: ``[T, 9]`` as ``poses.encode_cameras`` has them, in the world; the fields of view are the crop's.
        usable: indices of the views that have enough depth.
    """

    name: str
    source: str
    fingerprint: str
    depth: Tensor
    points: Tensor
    extrinsics: Tensor
    cameras: Tensor
    usable: tuple[int, ...]

    @property
    def valid(self) -> Tensor:
        """Bool ``[T, h, w]``: where there is depth."""
        return self.depth > 0


def scene_truth(scene: Scene, settings: PriorSettings | None, grid: tuple[int, int]) -> SceneTruth:
    """Depth, points and cameras at the centres of a prior's tokens.

    Args:
        scene: with depth, poses and intrinsics.
        settings: of the prior, which say what it sees of a picture; None for the whole.
        grid: (h, w) of the tokens.

    Raises:
        SceneError: something is missing, or a file is damaged.
        ReadoutError: no view has depth at a tenth of its tokens.
    """
    scene.require("depth", "pose", "intrinsics")
    views = [_view_truth(view, seen_crop(view.size, settings), grid) for view in scene.views]
    depth, points, extrinsics, cameras = (torch.stack(parts) for parts in zip(*views, strict=True))
    covered = (depth > 0).flatten(1).double().mean(dim=1)
    usable = tuple(int(i) for i in torch.nonzero(covered >= LEAST_DEPTH).flatten())
    if not usable:
        raise ReadoutError(
            f"Scene {scene.name!r} ({scene.source}): no view has depth at {LEAST_DEPTH:.0%} of its {grid[0]}x{grid[1]} "
            f"tokens; the best has {float(covered.max()):.1%}. Check its depth maps with `vega3d scene info`."
        )
    return SceneTruth(scene.name, scene.source, scene.fingerprint, depth, points, extrinsics, cameras, usable)


def _view_truth(view: View, crop: Crop, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    depth, intrinsics, pose = view.depth(), view.intrinsics, view.pose
    assert depth is not None
    assert intrinsics is not None
    assert pose is not None
    own = view.intrinsics_of_depth(depth.shape)
    assert own is not None
    # The centre of the top left pixel is (0, 0), and its corner (-0.5, -0.5).
    v = crop.top + (torch.arange(grid[0], dtype=torch.float64) + 0.5) * crop.height / grid[0] - 0.5
    u = crop.left + (torch.arange(grid[1], dtype=torch.float64) + 0.5) * crop.width / grid[1] - 0.5
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    rays = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1) @ torch.linalg.inv(intrinsics).T
    metres = _nearest(depth.double(), rays @ own.T)
    points = (metres[..., None] * rays) @ pose[:3, :3].T + pose[:3, 3]
    inverse = torch.cat([pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3:]], dim=1)
    size = (crop.height, crop.width)
    return metres, points, inverse, encode_cameras(inverse, intrinsics, size)


def _nearest(depth: Tensor, places: Tensor) -> Tensor:
    """Depth ``[Hd, Wd]`` at places ``[h, w, 3]`` in its pixels; 0 outside. Never a mean: it would lie on no surface."""
    column, row = (places[..., :2] / places[..., 2:]).round().long().unbind(-1)
    inside = (row >= 0) & (row < depth.shape[0]) & (column >= 0) & (column < depth.shape[1])
    found = depth[row.clamp(0, depth.shape[0] - 1), column.clamp(0, depth.shape[1] - 1)]
    return torch.where(inside, found, 0)


def check_distinct(truths: Sequence[SceneTruth]) -> None:
    """Raise :class:`ReadoutError` where two scenes are one: it could be trained on and judged at once."""
    seen: dict[str, str] = {}
    for truth in truths:
        if truth.fingerprint in seen:
            raise ReadoutError(
                f"The scenes {seen[truth.fingerprint]!r} and {truth.name!r} have the same content, so one could be "
                "trained on and the other judged. Give each scene once."
            )
        seen[truth.fingerprint] = truth.name
