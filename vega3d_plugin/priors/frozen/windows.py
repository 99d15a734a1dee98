"""Long clips in overlapping windows of steps, for models that attend across all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...contracts.errors import PriorError

if TYPE_CHECKING:
    from torch import Tensor


def windows(steps: int, size: int, overlap: int) -> list[range]:
    """Cover ``range(steps)`` with windows of ``size`` steps that share at least ``overlap`` with their neighbours.

    They are spread evenly, so the last one is not squeezed against the end. One window where all steps fit into it.

    Raises:
        PriorError: the overlap leaves a window nothing of its own.
    """
    if not 0 <= overlap < size:
        raise PriorError(f"A window of {size} frames cannot overlap its neighbour by {overlap}: use 0 to {size - 1}.")
    if steps <= size:
        return [range(steps)]
    count = -(-(steps - overlap) // (size - overlap))
    starts = [(i * (steps - size)) // (count - 1) for i in range(count)]
    return [range(start, start + size) for start in starts]


def average(parts: Sequence[Tensor], places: Sequence[range]) -> Tensor:
    """Join the windows' maps ``[size, ...]`` into ``[steps, ...]``; where several cover a step, their mean."""
    if len(parts) == 1:
        return parts[0]
    steps = max(place.stop for place in places)
    total = parts[0].new_zeros((steps, *parts[0].shape[1:]))
    counts = parts[0].new_zeros((steps, *([1] * (parts[0].ndim - 1))))
    for part, place in zip(parts, places, strict=True):
        total[place.start : place.stop] += part
        counts[place.start : place.stop] += 1
    return total / counts
