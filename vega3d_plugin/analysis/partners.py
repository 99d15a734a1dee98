"""Which token of one view truly shows what a token of another view shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..priors.framing import Framing
from ..scenes.coordinates import project, sample_nearest, to_world, visible
from ..scenes.scene import Scene, View

#: Metres by which a depth may differ from that of the point it should show; 2% of the distance, where that is more.
TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Partners:
    """Tokens of one view whose place another view sees.

    Attributes:
        tokens: raster indices in the first view's map ``[n]``.
        places: (x, y) in the second view's map ``[n, 2]``, where token (0, 0) spans 0 to 1; all within the map.
    """

    tokens: Tensor
    places: Tensor

    def nearest(self, grid: tuple[int, int]) -> Tensor:
        """Raster indices ``[n]`` of the tokens of the second view, in a map ``(h, w)``, that the places lie in."""
        column, row = self.places.floor().long().unbind(-1)
        return row * grid[1] + column

    def to(self, device: torch.device) -> Partners:
        """The same on a device."""
        return Partners(self.tokens.to(device), self.places.to(device, torch.float32))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class SharedViews:
    """Two views and what they share.

    Attributes:
        first, second: indices of the views.
        angle: of the rotation from one camera to the other, degrees.
        there, back: partners of the first view's tokens in the second, and the other way round.
    """

    first: int
    second: int
    angle: float
    there: Partners
    back: Partners

    @property
    def shared(self) -> int:
        """Tokens of both views together that the other one sees."""
        return len(self.there) + len(self.back)

    def to(self, device: torch.device) -> SharedViews:
        """The same on a device."""
        return SharedViews(self.first, self.second, self.angle, self.there.to(device), self.back.to(device))


def shared_views(
    scene: Scene, framing: Framing, grid: tuple[int, int], tolerance: float = TOLERANCE
) -> list[SharedViews]:
    """All pairs of views, the first before the second, and what they share.

    A token stands for the point at its centre. The other view sees that point if it lies in the part of the frame that
    the prior sees, and the depth measured there agrees with its distance.

    Args:
        scene: with depth, intrinsics and poses; frames of one size.
        framing: what the prior sees of them.
        grid: (h, w) of its map.
        tolerance: see :data:`TOLERANCE`.

    Raises:
        SceneError: depth, intrinsics or poses are missing.
    """
    scene.require("depth", "intrinsics", "pose")
    views = scene.views
    depths = [_depth(view) for view in views]
    places = [token_places(view, depth, framing, grid) for view, depth in zip(views, depths, strict=True)]

    def partners(i: int, j: int) -> Partners:
        points, known = places[i]
        return _partners(points, known, views[j], depths[j], framing, grid, tolerance)

    return [
        SharedViews(i, j, relative_angle(_pose(views[i]), _pose(views[j])), partners(i, j), partners(j, i))
        for i in range(len(views))
        for j in range(i + 1, len(views))
    ]


def token_places(view: View, depth: Tensor, framing: Framing, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The world point at each token's centre ``[h * w, 3]``, float64, and where depth was measured ``[h * w]``."""
    picture, own = _matrix(view.intrinsics), _matrix(view.intrinsics_of_depth(depth.shape))
    # Pixels of matrices have their centre at whole numbers.
    pixels = framing.token_centres(grid) - 0.5
    rays = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1) @ torch.linalg.inv(picture).T
    distance = sample_nearest(depth.double(), (rays @ own.T)[:, :2])
    return to_world(rays * distance[:, None], _pose(view)), distance > 0


def relative_angle(first: Tensor, second: Tensor) -> float:
    """Degrees of the rotation between two poses ``[4, 4]``."""
    trace = float((first[:3, :3].T @ second[:3, :3]).diagonal().sum())
    return math.degrees(math.acos(min(1.0, max(-1.0, (trace - 1) / 2))))


def _partners(
    points: Tensor,
    known: Tensor,
    view: View,
    depth: Tensor,
    framing: Framing,
    grid: tuple[int, int],
    tolerance: float,
) -> Partners:
    is_seen, _ = visible(points, view, depth.double(), tolerance)
    pixels, _ = project(points, _matrix(view.intrinsics), _pose(view))
    places = framing.to_token(pixels + 0.5, grid)
    limits = places.new_tensor([grid[1], grid[0]])
    inside = ((places >= 0) & (places < limits)).all(dim=-1)
    tokens = (known & is_seen & inside).nonzero()[:, 0]
    return Partners(tokens, places[tokens])


def _depth(view: View) -> Tensor:
    depth = view.depth()
    assert depth is not None  # required above
    return depth


def _pose(view: View) -> Tensor:
    assert view.pose is not None  # required above
    return view.pose


def _matrix(intrinsics: Tensor | None) -> Tensor:
    assert intrinsics is not None  # required above
    return intrinsics
