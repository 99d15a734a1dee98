"""Fewer frames: features of the frames that a prior does not see, from their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def seen_frames(count: int, every: int) -> list[int]:
    """Of ``count`` frames every n-th and the last, so that each of the others lies between two."""
    return sorted({*range(0, count, every), count - 1})


def interpolated(features: Tensor, places: Sequence[int]) -> Tensor:
    """Linear in time: maps ``[K, C, h, w]`` at ``places``, the first being 0, to all ``[places[-1] + 1, C, h, w]``.

    The maps at ``places`` are as they were, bit for bit.
    """
    out = features.new_empty(places[-1] + 1, *features.shape[1:])
    out[list(places)] = features
    for index, (start, end) in enumerate(pairwise(places)):
        first, second = features[index].float(), features[index + 1].float()
        for frame in range(start + 1, end):
            out[frame] = torch.lerp(first, second, (frame - start) / (end - start))
    return out
