"""Which views of a scene to show: uniform in time, by coverage of space, every n-th, or given ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import SceneError, SettingsError, UnknownNameError, near_misses
from .coordinates import Preset, point_map
from .scene import Scene

How = Literal["uniform", "coverage", "every", "given"]
#: What the released code shows of a scene, and the most that its coverage lists hold.
RELEASED_VIEWS = 32
VOXEL = 0.1
# Scenes of more views get a progress bar while their depth is read.
QUIET_VIEWS = 64
_BITS = 20  # an axis of 2 ** 21 voxels: 200 km at 0.1 m


@dataclass(frozen=True)
class ViewChoice:
    """Chosen views, and what each of them adds.

    Attributes:
        how: the rule.
        indices: into the scene's views, in time order. ``uniform`` repeats some where there are fewer views.
        order: the same in the order of choice.
        gains: for each of ``indices``, the number of voxels that no view chosen before it shows; None where the scene
            has no depth or poses.
        total: voxels that count: those that any candidate shows; None as above.
    """

    how: How
    indices: tuple[int, ...]
    order: tuple[int, ...]
    gains: tuple[int, ...] | None = None
    total: int | None = None

    @property
    def covered(self) -> float | None:
        """The share of all voxels that the chosen views show together."""
        return None if self.gains is None or not self.total else sum(self.gains) / self.total


def uniform(total: int, count: int) -> list[int]:
    """``count`` indices spread over ``total``, both ends included, rounded down (``video_utils.py``, as released).

    Raises:
        SettingsError: a number below 1.
    """
    if total < 1 or count < 1:
        raise SettingsError(f"Views are chosen from at least 1 and are at least 1, found {total} and {count}.")
    return [int(index) for index in np.linspace(0, total - 1, count, dtype=int)]


def choose_views(
    scene: Scene,
    how: How = "uniform",
    count: int = RELEASED_VIEWS,
    *,
    step: int = 1,
    given: Sequence[int | str] = (),
    voxel: float = VOXEL,
    ratio: float = 1.0,
    scan: Tensor | None = None,
    preset: Preset | None = None,
    gains: bool = True,
) -> ViewChoice:
    """Choose views of a scene.

    Args:
        scene: any; ``coverage`` needs depth, intrinsics and poses.
        how: ``uniform``; ``coverage``: greedily the view that shows most voxels not yet seen, ties to the earlier one;
            ``every``: each ``step``-th; ``given``.
        count: number of views, for ``uniform`` and ``coverage``.
        step: for ``every``.
        given: indices or names of views, for ``given``.
        voxel: side, metres.
        ratio: ``coverage`` stops once this share of all voxels is seen: 1, or 0.95 and 0.9 as released.
        scan: int ``[N, 3]``, the only voxels that count (rounded, aligned world coordinates over ``voxel``), such as
            those of a scanned mesh; None: all.
        preset: ``released``: candidates are every second view if that leaves 32, the best 32 are found and the first
            ``count`` of them taken, and pixels without depth count as their camera's place
            (``max_coverage_sampling.py``, whose ties were drawn by chance).
        gains: whether to read all depth maps to tell what each view adds, where ``how`` does not need it.

    Raises:
        UnknownNameError: an unknown ``how``.
        SettingsError: a count, step, voxel or ratio out of range.
        SceneError: ``coverage`` without geometry, or a given view that is not there.
    """
    _check(how, count, step, voxel, ratio, preset)
    if how == "coverage":
        return _by_coverage(scene, count, voxel, ratio, scan, preset)
    if how == "given":
        indices = [_found(scene, each) for each in given]
        if not indices:
            raise SettingsError("No views are given. Give their indices or names.")
    else:
        indices = uniform(len(scene), count) if how == "uniform" else list(range(0, len(scene), step))
    chosen = ViewChoice(how, tuple(sorted(indices)), tuple(indices))
    if not gains or not (scene.has_depth and scene.has_poses):
        return chosen
    seen = _Voxels(scene, range(len(scene)), voxel, scan, preset)
    return seen.choice(how, indices)


def _check(how: str, count: int, step: int, voxel: float, ratio: float, preset: str | None) -> None:
    if how not in get_args(How):
        raise UnknownNameError("way of choosing views", how, get_args(How))
    if preset not in (None, "released"):
        raise UnknownNameError("preset", preset, ["released"])
    wrong = []
    if count < 1:
        wrong.append(f"count is {count}: ask for at least 1 view")
    if preset == "released" and how == "coverage" and count > RELEASED_VIEWS:
        wrong.append(f"count is {count}: the released lists hold at most {RELEASED_VIEWS} views")
    if step < 1:
        wrong.append(f"step is {step}: give at least 1")
    if not 1e-4 <= voxel <= 1e4:
        wrong.append(f"voxel is {voxel:g}: give metres, such as {VOXEL}")
    if not 0 < ratio <= 1:
        wrong.append(f"ratio is {ratio:g}: give a share above 0 and up to 1")
    if wrong:
        raise SettingsError(f"Views cannot be chosen: {'; '.join(wrong)}.")


def _found(scene: Scene, wanted: int | str) -> int:
    names = [view.name for view in scene.views]
    if wanted in names:
        return names.index(str(wanted))
    if isinstance(wanted, int) or wanted.isdecimal():
        if int(wanted) < len(scene):
            return int(wanted)
        raise SceneError(
            f"Scene {scene.name!r} has {len(scene)} views, the last is number {len(scene) - 1}: no {wanted}."
        )
    raise SceneError(f"Scene {scene.name!r} has no view {wanted!r}.{near_misses(wanted, names)}")


def _by_coverage(
    scene: Scene, count: int, voxel: float, ratio: float, scan: Tensor | None, preset: Preset | None
) -> ViewChoice:
    scene.require("depth", "intrinsics", "pose")
    candidates: Sequence[int] = range(len(scene))
    most = count
    if preset == "released":
        halved = candidates[::2]
        candidates = halved if len(halved) >= RELEASED_VIEWS else candidates
        most = RELEASED_VIEWS
    seen = _Voxels(scene, candidates, voxel, scan, preset)
    order, gains = seen.greedy(most)
    order, gains = order[:count], gains[:count]
    enough = next((i for i, sum_ in enumerate(accumulate(gains), 1) if sum_ >= ratio * seen.total), len(order))
    if ratio < 1:
        order = order[:enough]
    return seen.choice("coverage", order)


class _Voxels:
    """Which voxels each candidate shows, as numbers from 0 over all of them."""

    def __init__(
        self, scene: Scene, candidates: Sequence[int], voxel: float, scan: Tensor | None, preset: Preset | None
    ) -> None:
        bar = tqdm(
            candidates, f"Depth of {scene.name}", leave=False, unit="view", disable=len(candidates) < QUIET_VIEWS
        )
        keys = {index: _keys(scene, index, voxel, preset) for index in bar}
        every = np.unique(np.concatenate(list(keys.values()))) if keys else np.empty(0, np.int64)
        self.of = {index: np.searchsorted(every, key) for index, key in keys.items()}
        # Voxels outside the scan are used up as the others are, but count nothing.
        self.counts = np.ones(len(every), bool) if scan is None else np.isin(every, _packed(scan.numpy()))
        self.total = int(self.counts.sum())

    def greedy(self, count: int) -> tuple[list[int], list[int]]:
        """Up to ``count`` candidates in the order of choice, and what each adds."""
        fresh = self.counts.copy()
        left = list(self.of)
        order: list[int] = []
        gains: list[int] = []
        while left and len(order) < count:
            new = [int(fresh[self.of[index]].sum()) for index in left]
            best = int(np.argmax(new))  # the first of equals
            order.append(left.pop(best))
            gains.append(new[best])
            fresh[self.of[order[-1]]] = False
        return order, gains

    def choice(self, how: How, order: Sequence[int]) -> ViewChoice:
        fresh = self.counts.copy()
        gains: list[int] = []
        for index in order:
            gains.append(int(fresh[self.of[index]].sum()))
            fresh[self.of[index]] = False
        in_time = sorted(range(len(order)), key=lambda i: order[i])
        return ViewChoice(
            how, tuple(order[i] for i in in_time), tuple(order), tuple(gains[i] for i in in_time), self.total
        )


def _keys(scene: Scene, index: int, voxel: float, preset: Preset | None) -> NDArray[np.int64]:
    """The voxels of a view, packed into one number each, sorted."""
    seen = point_map(scene.views[index], scene.alignment)
    points = seen.points.reshape(-1, 3) if preset == "released" else seen.points[seen.valid]
    return np.unique(_packed((points / voxel).round().to(torch.int64).numpy()))


def _packed(voxels: NDArray[np.integer]) -> NDArray[np.int64]:
    half = 1 << _BITS
    shifted = voxels.astype(np.int64) + half
    if len(shifted) and (shifted.min() < 0 or shifted.max() >= 2 * half):
        raise SceneError(f"There are points over {half:,} voxels away. Check the unit of depth and poses.")
    packed: NDArray[np.int64] = (shifted[:, 0] << 2 * _BITS + 2) | (shifted[:, 1] << _BITS + 1) | shifted[:, 2]
    return packed
