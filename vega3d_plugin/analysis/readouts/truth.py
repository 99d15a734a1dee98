"""What is true of each token of a view: its depth, its place in the world, and the camera that saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import AnalysisError
from ...priors.framing import Framing
from ...scenes.scene import Scene, View
from ..partners import token_places
from .poses import encode_cameras

#: A view of which a smaller part of the tokens has depth cannot be read out.
LEAST_DEPTH = 0.1


@dataclass(frozen=True, eq=False)
class SceneTruth:
    """The truth of a scene's views on one grid.

    Attributes:
        name, source, fingerprint: of the scene.
        depth: ``[T, h, w]`` float64, metres along the camera's z axis, at the centre of each token; 0 where there is
            none. Never a mean over the token, which would lie on no surface.
        points: ``[T, h, w, 3]`` float64, in the world, metres.
        extrinsics: ``[T, 3, 4]`` float64, world-to-camera.
        cameras: ``[T, 9]`` as ``poses.encode_cameras`` has them, in the world; the fields of view are those of the
            part of the picture that the prior sees.
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


def scene_truth(scene: Scene, framing: Callable[[tuple[int, int]], Framing], grid: tuple[int, int]) -> SceneTruth:
    """Depth, points and cameras at the centres of a prior's tokens.

    Args:
        scene: with depth, poses and intrinsics.
        framing: which part of pictures of a size the prior sees, such as ``prior.framing``.
        grid: (h, w) of the tokens.

    Raises:
        SceneError: something is missing, or a file is damaged.
        AnalysisError: no view has depth at a tenth of its tokens.
    """
    scene.require("depth", "pose", "intrinsics")
    views = [_view_truth(view, framing(view.size), grid) for view in scene.views]
    depth, points, extrinsics, cameras = (torch.stack(parts) for parts in zip(*views, strict=True))
    covered = (depth > 0).flatten(1).double().mean(dim=1)
    usable = tuple(int(i) for i in torch.nonzero(covered >= LEAST_DEPTH).flatten())
    if not usable:
        raise AnalysisError(
            f"Scene {scene.name!r} ({scene.source}): no view has depth at {LEAST_DEPTH:.0%} of its {grid[0]}x{grid[1]} "
            f"tokens; the best has {float(covered.max()):.1%}. Check its depth maps with `vega3d scene info`."
        )
    return SceneTruth(scene.name, scene.source, scene.fingerprint, depth, points, extrinsics, cameras, usable)


def _view_truth(view: View, framing: Framing, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    depth, intrinsics, pose = view.depth(), view.intrinsics, view.pose
    assert depth is not None  # required by the caller, as are the others
    assert intrinsics is not None
    assert pose is not None
    places, known = token_places(view, depth, framing, grid)
    inverse = torch.cat([pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3:]], dim=1)
    metres = torch.where(known, (places @ inverse[:, :3].T + inverse[:, 3])[:, 2], 0)
    left, top, right, bottom = framing.box
    camera = encode_cameras(inverse, intrinsics, (bottom - top, right - left))
    return metres.unflatten(0, grid), places.unflatten(0, grid), inverse, camera


def check_distinct(scenes: Sequence[Scene]) -> None:
    """Raise :class:`AnalysisError` where two scenes are one: it could be trained on and judged at once."""
    seen: dict[str, str] = {}
    for scene in scenes:
        if scene.fingerprint in seen:
            raise AnalysisError(
                f"The scenes {seen[scene.fingerprint]!r} and {scene.name!r} ({scene.source}) have the same content, so "
                "one could be trained on and the other judged. Give each scene once."
            )
        seen[scene.fingerprint] = scene.name
