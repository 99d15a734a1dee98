"""Which views make a clip, what is true of it, and which scenes are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import AnalysisError
from .poses import matrix_to_quaternion, rebase
from .truth import SceneTruth

#: Views in a clip, as published.
VIEWS = 4

Start = Literal["any", "first"]


def sample_views(
    candidates: Sequence[int], rng: np.random.Generator, start: Start = "any", count: int = VIEWS
) -> list[int]:
    """Draw the views of a clip, in time order.

    VidFM3D (``video_probe_dataset.py::_sample_query_frames``) takes frame 0 of a window of 76 frames and three later
    ones, each at least 5 after the one before, the room that is left shared out at random. Here the window is all
    views of a scene that can be used, and the smallest gap is the same part of it (5 in 76, at least 1).

    Args:
        candidates: indices of the views, ascending.
        rng: draws.
        start: ``first``: the first one leads every clip, as published; ``any``: any that leaves room, so that a few
            scenes give many clips.
        count: views in a clip.

    Raises:
        AnalysisError: fewer candidates than views in a clip.
    """
    total = len(candidates)
    if total < count:
        raise AnalysisError(f"A clip takes {count} views, but only {total} can be used. Give scenes of more views.")
    gap = max(1, round(5 / 76 * total))
    slack = total - ((count - 1) * gap + 1)
    at = 0
    if start == "any":
        at = int(rng.integers(0, slack + 1))
        slack -= at
    cuts = np.sort(rng.integers(0, slack + 1, size=count - 1))
    chosen = [at]
    for extra in np.diff(cuts, prepend=0):
        chosen.append(chosen[-1] + gap + int(extra))
    return [candidates[i] for i in chosen]


@dataclass(frozen=True, eq=False)
class ClipTruth:
    """What a read-out of one clip should say; float32.

    Attributes:
        views: indices into the scene.
        points: ``[S, h, w, 3]`` in the first view's camera, in units of the mean distance of that view's points.
        depth: ``[S, h, w, 1]`` in that unit.
        valid: bool ``[S, h, w]``.
        cameras: ``[S, 9]``.
        extrinsics: ``[S, 3, 4]``, the first the identity.
    """

    views: tuple[int, ...]
    points: Tensor
    depth: Tensor
    valid: Tensor
    cameras: Tensor
    extrinsics: Tensor


def clip_truth(truth: SceneTruth, views: Sequence[int]) -> ClipTruth:
    """The truth of some views of a scene, in the coordinates and the scale of the first."""
    index = torch.tensor(list(views))
    valid = truth.valid[index]
    found = rebase(truth.extrinsics[index], truth.points[index], truth.depth[index], valid)
    # The nine numbers again, of the moved cameras; the fields of view stay.
    moved = found.extrinsics
    cameras = torch.cat([moved[..., 3], matrix_to_quaternion(moved[..., :3]), truth.cameras[index][:, 7:]], dim=1)
    points = torch.where(valid[..., None], found.points, 0).float()
    return ClipTruth(tuple(views), points, found.depth.float()[..., None], valid, cameras.float(), moved.float())


@dataclass(frozen=True)
class Split:
    """Which scenes a read-out is trained on, and which it is judged on: indices, disjoint."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split_scenes(fingerprints: Sequence[str], share: float = 0.25, seed: int = 0) -> Split:
    """Draw the scenes to hold out; the draw depends on their contents and the seed, not on their order.

    Args:
        fingerprints: of the scenes, all different.
        share: of the scenes to hold out; at least two are.
        seed: draws.

    Raises:
        AnalysisError: fewer than four scenes, or a share outside 0 to 1.
    """
    total = len(fingerprints)
    if not 0 < share < 1:
        raise AnalysisError(f"The share of held-out scenes must lie between 0 and 1, found {share}.")
    if total < 4:
        raise AnalysisError(
            f"A read-out needs at least 4 scenes, found {total}: it is judged on whole scenes that it was not trained "
            "on, two at least. Give more scenes."
        )
    count = min(max(2, round(share * total)), total - 2)
    order = sorted(range(total), key=lambda i: hashlib.sha256(f"{seed} {fingerprints[i]}".encode()).digest())
    return Split(tuple(sorted(order[count:])), tuple(sorted(order[:count])))
