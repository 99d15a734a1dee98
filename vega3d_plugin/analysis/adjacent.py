"""The released correspondence score of neighbouring views, step by step, oddities included.

Source of the definitions: H-EmbodVis/VEGA-3D, ``scripts/visualization/wan_t2v_adjacent_correspondence_matching.py``
(``run`` and the functions it calls) and ``wan_triview_video.py`` (``_pair_token_consistency``, ``_nearest_indices``).

Two tokens correspond if they share a voxel: nothing tests whether one sees what the other sees. Features are not
centred, so an offset that all tokens share raises the score. Pixels without depth lie at the camera's centre and are
averaged in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import AnalysisError
from ..priors.framing import Framing
from ..scenes.coordinates import PointMap

#: Rows and columns that everything is pooled to.
GRID = 14
#: Edge of a voxel, metres.
VOXEL = 0.1
#: Share of a token's pixels that must have depth.
VALID_SHARE = 0.1


@dataclass(frozen=True)
class Tokens:
    """What is compared of each view. Attributes: ``features`` ``[V, C, g, g]``; ``world`` ``[V, g, g, 3]``, metres;
    ``valid`` ``[V, g, g]``, whether enough of the token's pixels have depth; ``valid_share``, how many do."""

    features: Tensor
    world: Tensor
    valid: Tensor
    valid_share: Tensor


@dataclass(frozen=True)
class PairScore:
    """The score of two views.

    Attributes:
        score: mean over the voxels seen in both of the cosine of their mean unit features; NaN without such a voxel.
        shared: voxels seen in both.
        voxels: voxels seen in either.
        maps: the value of each token's voxel ``[2, g, g]``, NaN where it is not shared.
    """

    score: float
    shared: int
    voxels: int
    maps: Tensor


@dataclass(frozen=True)
class Matches:
    """Tokens of two views that are each other's nearest in feature space, the most similar first.

    Attributes:
        first, second: raster indices of the tokens ``[n]``.
        similarity: cosine ``[n]``.
        distance: of their places in the world ``[n]``, metres.
        valid: tokens with depth in the first and the second view.
        mutual: how many are mutual, before any threshold.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor
    distance: Tensor
    valid: tuple[int, int]
    mutual: int

    def __len__(self) -> int:
        return len(self.first)


def pooled_tokens(
    features: Tensor, places: PointMap, framing: Framing, *, grid: int = GRID, valid_share: float = VALID_SHARE
) -> Tokens:
    """Bring features and geometry to one coarse grid.

    Args:
        features: ``[V, C, h, w]``, of what is seen of the frames.
        places: of every pixel of the depth maps, ``[V, H, W]``.
        framing: of the depth maps: they are resized and cut as the frames were, each pixel the nearest one.
        grid: rows and columns of the result.
        valid_share: see :attr:`Tokens.valid`.
    """
    (top, left), (height, width) = framing.corner, framing.size
    whole = places.resized(framing.covered)
    rows, columns = slice(top, top + height), slice(left, left + width)
    seen = PointMap(whole.points[:, rows, columns], whole.valid[:, rows, columns])
    pooled = seen.pooled((grid, grid), "released")
    maps = F.adaptive_avg_pool2d(features.float(), grid)
    return Tokens(maps, pooled.points.to(maps.device), pooled.valid(valid_share).to(maps.device), pooled.measured)


def pair_score(tokens: Tokens, i: int, j: int, voxel: float = VOXEL, others: Tensor | None = None) -> PairScore:
    """The released score of views ``i`` and ``j``.

    Args:
        tokens: of all views.
        i, j: the two views.
        voxel: edge of a voxel, metres; voxels begin at the lowest coordinates of both views' valid tokens.
        others: ``[C, g, g]`` in the place of the features of view ``j``, for a control.

    Raises:
        AnalysisError: a voxel without size, or features that are not finite.
    """
    if not voxel > 0:
        raise AnalysisError(f"A voxel needs an edge above 0 metres, got {voxel}.")
    shape = tokens.valid.shape[1:]
    features = torch.stack([tokens.features[i], tokens.features[j] if others is None else others])
    check_finite(features, f"views {i} and {j}")
    units = F.normalize(features.flatten(2).transpose(1, 2), dim=-1)
    valid = tokens.valid[[i, j]].flatten(1)
    maps = torch.full((2, valid.shape[1]), float("nan"), device=units.device)
    if not bool(valid.any()):
        return PairScore(float("nan"), 0, 0, maps.unflatten(1, shape))
    places = tokens.world[[i, j]].flatten(1, 2)[valid]
    cells = torch.floor((places - places.amin(dim=0)) / voxel).long()
    found, voxels = torch.unique(cells, dim=0, return_inverse=True)
    view = valid.nonzero()[:, 0]

    sums = units.new_zeros(2, len(found), units.shape[-1])
    sums.index_put_((view, voxels), units[valid], accumulate=True)
    counts = units.new_zeros(2, len(found))
    counts.index_put_((view, voxels), torch.ones_like(view, dtype=units.dtype), accumulate=True)
    shared = (counts > 0).all(dim=0)
    means = F.normalize(sums / counts.clamp(min=1)[..., None], dim=-1)
    values = (means[0] * means[1]).sum(dim=-1)
    maps[valid] = torch.where(shared, values, float("nan"))[voxels]
    score = float(values[shared].double().mean()) if bool(shared.any()) else float("nan")
    return PairScore(score, int(shared.sum()), len(found), maps.unflatten(1, shape))


def scene_summary(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the pairs' scores, pairs without a score left out; NaN where none is."""
    known = np.array([score for score in scores if not math.isnan(score)])
    mean = float(known.mean()) if len(known) else float("nan")
    return mean, float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def match(
    tokens: Tokens,
    i: int,
    j: int,
    *,
    least_similarity: float = 0.6,
    mutual: bool = True,
    farthest: float = 0.0,
) -> Matches:
    """Nearest neighbours in feature space from view ``i`` to view ``j``, among valid tokens.

    Args:
        tokens: of all views.
        i, j: the two views.
        least_similarity: cosine below which a match is left out.
        mutual: only tokens that are each other's nearest.
        farthest: metres between the two places above which a match is left out; 0 for any.
    """
    first, second = (tokens.valid[view].flatten().nonzero()[:, 0] for view in (i, j))
    valid = (len(first), len(second))
    if not min(valid):
        nothing = torch.zeros(0, dtype=torch.long)
        return Matches(nothing, nothing, torch.zeros(0), torch.zeros(0), valid, 0)
    units = [
        F.normalize(tokens.features[view].flatten(1).T[index].float(), dim=-1)
        for view, index in ((i, first), (j, second))
    ]
    cosine = units[0] @ units[1].T
    similarity, nearest = cosine.max(dim=1)
    back = cosine.max(dim=0).indices
    is_mutual = back[nearest] == torch.arange(len(first), device=back.device)
    second = second[nearest]
    places = [tokens.world[view].flatten(0, 1) for view in (i, j)]
    distance = torch.linalg.vector_norm(places[0][first] - places[1][second], dim=-1)

    keep = similarity >= least_similarity
    if mutual:
        keep &= is_mutual
    if farthest > 0:
        keep &= distance <= farthest
    order = keep.nonzero()[:, 0]
    order = order[similarity[order].argsort(descending=True, stable=True)]
    first, second, similarity, distance = (part[order].cpu() for part in (first, second, similarity, distance))
    return Matches(first, second, similarity, distance, valid, int(is_mutual.sum()))


def token_consistency(first: Tensor, second: Tensor) -> float:
    """How well tokens of two maps ``[C, h, w]`` find each other, without any geometry.

    Half the mean of each token's highest cosine in the other map, from both sides.
    """
    one, two = (F.normalize(part.flatten(1).T.float(), dim=-1) for part in (first, second))
    cosine = one @ two.T
    return float(0.5 * (cosine.max(dim=1).values.mean() + cosine.max(dim=0).values.mean()))


def norm_picture(features: Tensor, low: float = 1.0, high: float = 99.0) -> NDArray[np.float32]:
    """The features' length in 0..1: ``[T, C, h, w]`` to ``[T, h, w]``, from one percentile to another over all."""
    norms = torch.linalg.vector_norm(features.float(), dim=1).cpu().numpy()
    finite = norms[np.isfinite(norms)]
    if finite.size == 0:
        return np.zeros_like(norms)
    least, most = (float(np.percentile(finite, q)) for q in (low, high))
    most = most if most > least else least + 1e-6
    scaled = np.clip((norms - least) / (most - least), 0, 1)
    return np.asarray(np.where(np.isfinite(scaled), scaled, 0), dtype=np.float32)


def token_centre(framing: Framing, row: int, column: int, grid: int = GRID) -> tuple[float, float]:
    """(x, y) of a token's centre in pixels of the frame, as lines are drawn to it."""
    x, y = framing.token_centres((grid, grid))[row * grid + column].tolist()
    return min(max(x, 0.0), framing.frame[1] - 1.0), min(max(y, 0.0), framing.frame[0] - 1.0)


def nearest_times(times: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """For each wanted time the index of the nearest of ``times`` (ascending); of two equally near the earlier one."""
    have, want = np.asarray(times, float), np.asarray(wanted, float)
    after = np.clip(np.searchsorted(have, want), 0, len(have) - 1)
    before = np.clip(after - 1, 0, len(have) - 1)
    return [int(i) for i in np.where(np.abs(want - have[before]) <= np.abs(have[after] - want), before, after)]


def check_finite(features: Tensor, where: str) -> None:
    """Refuse features that hold NaN or infinity.

    Raises:
        AnalysisError: how many, and where.
    """
    bad = int(features.numel() - torch.isfinite(features).sum())
    if bad:
        raise AnalysisError(
            f"{bad} of {features.numel()} features of {where} are NaN or infinite. Run the prior with dtype='float32', "
            "and check that its weights are whole."
        )
