"""Means with intervals: how far a figure would move had other scenes been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import AnalysisError

Floats = NDArray[np.float64]

#: Draws of a bootstrap.
DRAWS = 2000
_SEED = 0
_WIDTH = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and how sure it is.

    Attributes:
        value: NaN where there is none.
        low, high: ends of the 95% interval; NaN where there are fewer than two units to draw from.
        units: how many there are.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    units: int = 0

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.is_known else f"{self.value:.3f}"


def mean_interval(values: Sequence[float] | Floats) -> Interval:
    """Mean of values with its percentile bootstrap interval; NaN are left out."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Interval(float("nan"))
    if len(known) == 1:
        return Interval(float(known[0]), units=1)
    draws = known[_draws(len(known))].mean(axis=1)
    return _interval(float(known.mean()), draws, len(known))


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of paired differences, with its interval; pairs of which one is NaN are left out."""
    return mean_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's correlation; NaN where one of both does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 0 else float("nan")


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation, equal values sharing the mean of their ranks."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def correlation_interval(x: Sequence[float], y: Sequence[float], of: Callable[[Floats, Floats], float]) -> Interval:
    """A correlation of pairs, with its percentile bootstrap interval over them.

    Raises:
        AnalysisError: fewer than three pairs.
    """
    one, two = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(one) != len(two) or len(one) < 3:
        raise AnalysisError(f"A correlation needs at least three pairs of values, got {len(one)} and {len(two)}.")
    draws = np.array([of(one[index], two[index]) for index in _draws(len(one))])
    # Draws of one pair over and over have no correlation.
    return _interval(of(one, two), draws[~np.isnan(draws)], len(one))


def _draws(units: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, units, (DRAWS, units))


def _interval(value: float, draws: Floats, units: int) -> Interval:
    if len(draws) == 0:
        return Interval(value, units=units)
    low, high = np.percentile(draws, [50 * (1 - _WIDTH), 50 * (1 + _WIDTH)])
    return Interval(value, float(low), float(high), units)
