"""World points of the views that a host is shown, in a form that travels in its batch beside the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts.errors import SceneError
from .coordinates import RELEASED_SIDE, PointMap, point_map
from .scene import Scene

#: The argument of a host's forward and ``generate`` that carries them.
POINTS = "vega3d_points"


def view_points(*scenes: Scene, crop: tuple[int, int] | None = None) -> Tensor:
    """Where the pixels of the views lie: ``model(**batch, vega3d_points=vega3d.view_points(scene))``.

    For branches with ``positions="sin3d"``.

    Args:
        scenes: with depth, intrinsics, poses and lengths in metres; their views are those of the batch's pictures, in
            the order in which they are shown (see :meth:`~vega3d_plugin.scenes.scene.Scene.select`).
        crop: (height, width) that the host's processor resizes pictures to cover, and cuts out of their middle; None:
            the host sees whole pictures, whatever size it makes them.

    Returns:
        ``[N, 384, 384, 4]``, each view squashed to a square by nearest neighbour, as the released code has it: x, y and
        z in metres, in the axis-aligned world where the scene knows it, and 1 where depth was measured. The values are
        float32, their bits held as int32, so that no trainer rounds them to half precision.

    Raises:
        SceneError: no views, or a scene without depth, intrinsics or poses, or whose lengths are no metres.
    """
    found = []
    for scene in scenes:
        check_metric(scene)
        for view in scene.views:
            seen = point_map(view, scene.alignment)
            seen = (seen if crop is None else seen.covering(crop)).resized((RELEASED_SIDE, RELEASED_SIDE))
            found.append(torch.cat([seen.points.float(), seen.valid[..., None].float()], dim=-1))
    if not found:
        raise SceneError("view_points needs at least one scene, found none.")
    return torch.stack(found).contiguous().view(torch.int32)


def check_metric(scene: Scene) -> Scene:
    """The scene, when it is known where its pixels lie.

    Raises:
        SceneError: it lacks depth, intrinsics or poses, or its lengths are no metres.
    """
    scene.require("depth", "intrinsics", "pose")
    if not scene.metric:
        raise SceneError(
            f"Scene {scene.name!r} ({scene.source}) is known up to its scale only, and positions need metres."
        )
    return scene


def as_point_map(points: Tensor) -> PointMap:
    """The inverse of :func:`view_points`: ``[N, H, W]``.

    Raises:
        SceneError: something else.
    """
    if isinstance(points, Tensor) and points.dtype == torch.int32:
        points = points.contiguous().view(torch.float32)
    if not isinstance(points, Tensor) or points.ndim != 4 or points.shape[-1] != 4 or points.dtype != torch.float32:
        form = f"{points.dtype} {list(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
        raise SceneError(
            f"{POINTS} must be what vega3d.view_points(scene) returns, [N, H, W, 4] in int32 or float32, found {form}."
        )
    return PointMap(points[..., :3], points[..., 3] > 0)


__all__ = ["POINTS", "as_point_map", "check_metric", "view_points"]
