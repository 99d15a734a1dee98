"""Priors of the arms: features computed once for every clip and read while training, as a store would give them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.clips import clip_key
from vega3d_plugin.contracts.priors import Prior

from .rooms import Rows

#: What small-world is given: 12x12 tokens of 3x3 pixels a frame, both frames attended jointly.
SETTINGS = {"size": (36, 36), "context": "views", "timestep": 300, "shift": 1.0}


class KeptFeatures(Prior):
    """Features by the content of a clip.

    Args:
        features: ``[clips, T', C, h, w]``.
        keys: of the clips, see :func:`~vega3d_plugin.contracts.clips.clip_key`.
        fingerprint: of the prior that computed them.
    """

    concurrent = True

    def __init__(self, features: Tensor, keys: list[str], fingerprint: str) -> None:
        self.features, self.fingerprint = features, fingerprint
        self.number = {key: number for number, key in enumerate(keys)}
        self.feature_dim = features.shape[2]

    def __call__(self, frames: Tensor) -> Tensor:
        """``[T, 3, H, W]`` to ``[T', C, h, w]``; a clip that was not computed is a ``KeyError``."""
        return self.features[self.number[clip_key(frames)]].float()

    def shuffled(self, rooms: np.ndarray, seed: int) -> KeptFeatures:
        """Every clip gets the features of a clip of another room.

        Args:
            rooms: of the clips.
            seed: draws which.
        """
        order = np.random.default_rng(seed).permutation(len(rooms))
        while (clash := np.flatnonzero(rooms[order] == rooms)).size:
            other = np.random.default_rng(seed := seed + 1).integers(len(rooms), size=clash.size)
            order[clash], order[other] = order[other], order[clash]
        keys = list(self.number)
        return KeptFeatures(self.features[torch.from_numpy(order)], keys, f"{self.fingerprint}-shuffled")


def pictures_as_seen(rows: Rows) -> Tensor:
    """``[clips, 2, 3, side, side]`` in [0, 1]."""
    return rows.pictures.float() / 255


def compute(prior: Prior, rows: Rows, progress: Callable[[int], None] = lambda done: None) -> KeptFeatures:
    """The features of every clip, held in float16."""
    kept, keys = [], []
    for number, frames in enumerate(pictures_as_seen(rows)):
        kept.append(prior(frames).half())
        keys.append(clip_key(frames))
        progress(number + 1)
    return KeptFeatures(torch.stack(kept), keys, prior.fingerprint)


def trained_prior() -> Prior:
    """``small-world`` as it comes with the package."""
    return vega3d.load_prior("small-world", **SETTINGS)


def untrained_prior(seed: int) -> Prior:
    """The same class and size with seeded weights."""
    return vega3d.analysis.untrained_twin(trained_prior(), seed=seed)
