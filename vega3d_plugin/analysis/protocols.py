"""How features of several views are judged: what counts as correspondence, and which figures come of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AnalysisError, UnknownNameError
from ..priors.base import Prior
from ..scenes.coordinates import point_maps, sample_nearest
from ..scenes.scene import Scene, View
from . import adjacent
from .partners import TOLERANCE, Partners, SharedViews, relative_angle, shared_views
from .recall import MATCHES, WITHIN, DepthPixels, match_pixels, same_pixel

#: Given two views, whose features stand for the second one's: its own, or for a control another view's.
Other = Callable[[int, int], int]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of views that can be judged.

    Attributes:
        views: indices of the two views.
        angles: degrees of rotation between them.
        shared: what they share: tokens (``visible``), voxels (``released``) or pixels with depth (``probe3d``).
        left_out: pairs that share too little to be judged.
        data: what the protocol wants to know of each pair, or of all.
    """

    views: Sequence[tuple[int, int]]
    angles: Sequence[float]
    shared: Sequence[int]
    left_out: int
    data: Any


def own_view(first: int, second: int) -> int:
    """The second view's own features."""
    return second


class Protocol(ABC):
    """A way to judge features.

    Attributes:
        name: as users write it.
        figures: what each of its figures is, by name; the first one is the headline.
        summary: one sentence.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    figures: Mapping[str, str]
    #: The figure to look at first: one that an offset shared by all tokens cannot raise.
    headline: str

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What else a figure depends on; plain values, as JSON has them."""

    @abstractmethod
    def pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """Find the pairs of a scene's views, and what corresponds.

        Args:
            scene: with depth, intrinsics and poses, all of whose views are judged; frames of one size.
            prior: says what it sees of a frame.
            grid: (h, w) of its map.
        """

    def judged_pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """As :meth:`pairs`. Raises :class:`AnalysisError` where there is none."""
        pairs = self.pairs(scene, prior, grid)
        if not pairs.views:
            raise AnalysisError(
                f"The {len(scene)} judged views of scene {scene.name!r} ({scene.source}) share too little: no pair of "
                f"them shows enough of the same places (protocol {self.name!r}, map of {grid[0]}x{grid[1]} tokens). "
                "Judge more views, or ones that overlap, and check poses and depth with `vega3d scene info`."
            )
        return pairs

    @abstractmethod
    def measure(
        self, pairs: Pairs, features: Tensor, other: Other = own_view, same_position: bool = False
    ) -> dict[str, list[float]]:
        """Each figure for each pair; NaN where a pair has none.

        Args:
            pairs: of this scene.
            features: ``[V, C, h, w]`` float32, of all views.
            other: whose features stand for the second view's.
            same_position: look at the same place of the second view in place of searching or projecting.
        """


class Visible(Protocol):
    """All pairs of views; tokens correspond if one view truly sees what the other shows.

    Args:
        tolerance: metres by which depths may differ (or 2% of the distance).
        within: tokens within which a nearest neighbour is right.
        least_shared: tokens that two views must share to be judged.
    """

    name = "visible"
    summary = "all pairs of views; tokens correspond where the depth of one view agrees with what the other shows"
    headline = "centred"

    def __init__(
        self, tolerance: float = TOLERANCE, within: Sequence[float] = (1.0, 2.0), least_shared: int = 8
    ) -> None:
        if not tolerance > 0 or not within or min(within) <= 0 or least_shared < 1:
            raise AnalysisError(
                f"Protocol 'visible' needs a tolerance above 0, distances above 0 and at least 1 shared token, got "
                f"{tolerance}, {list(within)} and {least_shared}."
            )
        self.tolerance, self.within, self.least_shared = tolerance, tuple(within), least_shared
        recalls = {
            f"recall@{limit:g}": "share of tokens whose nearest neighbour among the other view's centred tokens lies "
            f"within {limit:g} token{'' if limit == 1 else 's'} of where it should"
            for limit in self.within
        }
        self.figures = {
            "cosine": "mean cosine of corresponding tokens, as they are: an offset that all tokens share raises it",
            "centred": "the same after the mean token of the scene was taken off",
            **recalls,
        }

    @property
    def options(self) -> dict[str, Any]:
        """Of the constructor."""
        return {"tolerance": self.tolerance, "within": list(self.within), "least_shared": self.least_shared}

    def pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """See :class:`Protocol`."""
        # Of a scene without metres only the share of the distance counts.
        tolerance = self.tolerance if scene.metric else 0.0
        found = shared_views(scene, prior.framing(scene.views[0].size), grid, tolerance)
        kept = [pair for pair in found if pair.shared >= self.least_shared]
        return Pairs(
            [(pair.first, pair.second) for pair in kept],
            [pair.angle for pair in kept],
            [pair.shared for pair in kept],
            len(found) - len(kept),
            kept,
        )

    def measure(
        self, pairs: Pairs, features: Tensor, other: Other = own_view, same_position: bool = False
    ) -> dict[str, list[float]]:
        """See :class:`Protocol`."""
        grid = (features.shape[2], features.shape[3])
        tokens = features.flatten(2).transpose(1, 2)
        raw = F.normalize(tokens, dim=-1)
        centred = F.normalize(tokens - tokens.mean(dim=(0, 1)), dim=-1)
        centres = token_grid(grid, features.device)
        values: dict[str, list[float]] = {name: [] for name in self.figures}
        for pair in pairs.data:
            parts = []
            for i, j, partners in _both_ways(pair.to(features.device)):
                k, p = other(i, j), partners.tokens
                q = p if same_position else partners.nearest(grid)
                found = p if same_position else (centred[i, p] @ centred[k].T).argmax(dim=-1)
                error = torch.linalg.vector_norm(centres[found] - partners.places, dim=-1)
                cosines = [(kind[i, p] * kind[k, q]).sum(dim=-1) for kind in (raw, centred)]
                parts.append(torch.stack([*cosines, *((error <= limit).float() for limit in self.within)]))
            means = torch.cat(parts, dim=1).double().mean(dim=1).tolist()
            for name, value in zip(self.figures, means, strict=True):
                values[name].append(value)
        return values


class Released(Protocol):
    """The released score: neighbouring views, tokens of a 14x14 grid that share a voxel, no test of visibility.

    Args:
        voxel: edge of a voxel, metres.
    """

    name = "released"
    summary = "neighbouring views; tokens correspond where they share a voxel, seen or not"
    headline = "centred"

    def __init__(self, voxel: float = adjacent.VOXEL) -> None:
        if not voxel > 0:
            raise AnalysisError(f"Protocol 'released' needs voxels with an edge above 0 metres, got {voxel}.")
        self.voxel = voxel
        self.figures = {
            "score": "the released score: mean cosine over shared voxels; an offset that all tokens share raises it",
            "centred": "the same after the mean token of the scene was taken off",
        }

    @property
    def options(self) -> dict[str, Any]:
        """Of the constructor."""
        return {"voxel": self.voxel}

    def pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """See :class:`Protocol`."""
        if not scene.metric:
            raise AnalysisError(
                f"Scene {scene.name!r} ({scene.source}) is known up to its scale only, and protocol 'released' has "
                "voxels of so many metres. Use protocol 'visible'."
            )
        places = point_maps(scene)
        framing = prior.framing((places.valid.shape[1], places.valid.shape[2]))
        nothing = torch.zeros(len(scene), 1, *grid)
        tokens = adjacent.pooled_tokens(nothing, places, framing)
        poses = scene.poses
        views = [(i, i + 1) for i in range(len(scene) - 1)]
        shared = [adjacent.pair_score(tokens, i, j, self.voxel).shared for i, j in views]
        kept = [k for k, count in enumerate(shared) if count]
        return Pairs(
            [views[k] for k in kept],
            [relative_angle(poses[views[k][0]], poses[views[k][1]]) for k in kept],
            [shared[k] for k in kept],
            len(views) - len(kept),
            tokens,
        )

    def measure(
        self, pairs: Pairs, features: Tensor, other: Other = own_view, same_position: bool = False
    ) -> dict[str, list[float]]:
        """See :class:`Protocol`."""
        pooled = F.adaptive_avg_pool2d(features, adjacent.GRID)
        mean = pooled.mean(dim=(0, 2, 3), keepdim=True)
        values: dict[str, list[float]] = {}
        for name, maps in zip(self.figures, (pooled, pooled - mean), strict=True):
            known: adjacent.Tokens = pairs.data
            tokens = adjacent.Tokens(maps, known.world.to(maps.device), known.valid.to(maps.device), known.valid_share)
            if same_position:
                values[name] = [_same_place(tokens, i, j) for i, j in pairs.views]
            else:
                values[name] = [
                    adjacent.pair_score(tokens, i, j, self.voxel, maps[other(i, j)]).score for i, j in pairs.views
                ]
        return values


class Probe3d(Protocol):
    """Probe3D's recall, for all pairs of views: nearest neighbours of bilinear features at every pixel with depth.

    Args:
        within: pixels within which a match is right, of a picture whose longer side has ``side`` pixels.
        side: pixels; 160 is a quarter of ScanNet's 640, as published.
        matches: the most distinct ones of a pair that count.
    """

    name = "probe3d"
    summary = "all pairs of views; nearest neighbours at every pixel with depth, the most distinct ones count"

    def __init__(self, within: Sequence[float] = WITHIN, side: int = 160, matches: int = MATCHES) -> None:
        if not within or min(within) <= 0 or side < 8 or matches < 1:
            raise AnalysisError(
                f"Protocol 'probe3d' needs distances above 0, a side of at least 8 pixels and at least 1 match, got "
                f"{list(within)}, {side} and {matches}."
            )
        self.within, self.side, self.matches = tuple(float(limit) for limit in within), side, matches
        self.figures = {
            f"recall@{limit:g}px": f"share of the most distinct matches that are less than {limit:g} pixels off"
            for limit in self.within
        }
        self.headline = list(self.figures)[min(1, len(self.figures) - 1)]

    @property
    def options(self) -> dict[str, Any]:
        """Of the constructor."""
        return {"within": list(self.within), "side": self.side, "matches": self.matches}

    def pairs(self, scene: Scene, prior: Prior, grid: tuple[int, int]) -> Pairs:
        """See :class:`Protocol`."""
        scene.require("depth", "intrinsics", "pose")
        seen = [self._seen(view, prior) for view in scene.views]
        poses = scene.poses
        views = [(i, j) for i in range(len(scene)) for j in range(i + 1, len(scene))]
        shared = [min(len(seen[i][0].points), len(seen[j][0].points)) for i, j in views]
        kept = [k for k, count in enumerate(shared) if count >= 2]
        return Pairs(
            [views[k] for k in kept],
            [relative_angle(poses[views[k][0]], poses[views[k][1]]) for k in kept],
            [shared[k] for k in kept],
            len(views) - len(kept),
            (seen, poses),
        )

    def _seen(self, view: View, prior: Prior) -> tuple[DepthPixels, Tensor]:
        """Pixels with depth of what the prior sees of a view, at the scaled size, and their intrinsics."""
        framing = prior.framing(view.size)
        scale = min(1.0, self.side / max(framing.size))
        size = (max(1, round(framing.size[0] * scale)), max(1, round(framing.size[1] * scale)))
        depth = view.depth()
        assert depth is not None
        own, picture = view.intrinsics_of_depth(depth.shape), view.intrinsics
        assert own is not None
        assert picture is not None
        pixels = framing.token_centres(size) - 0.5
        rays = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1) @ torch.linalg.inv(picture).T
        scaled = sample_nearest(depth, (rays @ own.T)[:, :2].float()).view(size)
        # From pixels with their centres at whole numbers to the scaled cut's, with centres at halves.
        factors = [framing.scale[k] * size[1 - k] / framing.size[1 - k] for k in (0, 1)]
        corners = [framing.corner[1 - k] * size[1 - k] / framing.size[1 - k] for k in (0, 1)]
        matrix = picture.clone()
        for axis in (0, 1):
            matrix[axis] *= factors[axis]
            matrix[axis, 2] += 0.5 * factors[axis] - corners[axis]
        return DepthPixels.of(scaled, matrix.float()), matrix.float()

    def measure(
        self, pairs: Pairs, features: Tensor, other: Other = own_view, same_position: bool = False
    ) -> dict[str, list[float]]:
        """See :class:`Protocol`."""
        seen, poses = pairs.data
        values: dict[str, list[float]] = {name: [] for name in self.figures}
        for i, j in pairs.views:
            views, matrix = (seen[i][0], seen[j][0]), seen[j][1]
            motion = (torch.linalg.inv(poses[j]) @ poses[i]).float()
            if same_position:
                found = same_pixel(views, matrix, motion)
            else:
                found = match_pixels((features[i], features[other(i, j)]), views, matrix, motion, self.matches)
            for name, value in zip(self.figures, found.recall(self.within).values(), strict=True):
                values[name].append(value)
        return values


PROTOCOLS: dict[str, type[Protocol]] = {kind.name: kind for kind in (Visible, Released, Probe3d)}


def protocol_of(protocol: str | Protocol) -> Protocol:
    """A protocol by name, with its default options, or the one given.

    Raises:
        UnknownNameError: nobody knows it; the message lists those there are.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]()


def token_grid(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Centres (x, y) of the tokens of a map ``(h, w)``, ``[h * w, 2]``, where token (0, 0) spans 0 to 1."""
    rows, columns = (torch.arange(side, device=device) + 0.5 for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _both_ways(pair: SharedViews) -> Iterator[tuple[int, int, Partners]]:
    yield pair.first, pair.second, pair.there
    yield pair.second, pair.first, pair.back


def _same_place(tokens: adjacent.Tokens, i: int, j: int) -> float:
    valid = (tokens.valid[i] & tokens.valid[j]).flatten()
    one, two = (F.normalize(tokens.features[view].flatten(1).T[valid], dim=-1) for view in (i, j))
    return float((one * two).sum(dim=-1).double().mean())
