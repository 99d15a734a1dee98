"""Intervals: the questions (or whole scenes) are drawn again and again, and the score is taken anew each time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

#: Counts that are held at once.
CHUNK = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        resamples: draws.
        seed: of the draws; each figure has its own stream, which depends on nothing but this and the figure's name.
        by: ``question``, or ``scene``: whole scenes are drawn, since questions of one share its pictures.
    """

    resamples: int = 1000
    seed: int = 0
    by: str = "question"

    def counts(self, name: str, members: Bools, strata: Ints | None, groups: Ints | None) -> Iterator[Floats]:
        """How often each question is drawn, ``[R, N]`` at a time, as many as there are resamples.

        Args:
            name: of the figure, which chooses the stream.
            members: ``[N]``, the questions to draw from.
            strata: ``[N]`` or None; as many are drawn from each stratum as it has.
            groups: ``[N]`` or None; what is drawn are whole groups.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        step = max(1, min(self.resamples, CHUNK // len(members)))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            counts = np.zeros((rows, len(members)))
            for stratum in np.unique(strata[members]) if strata is not None else [None]:
                inside = members if stratum is None else members & (strata == stratum)
                places = np.flatnonzero(inside)
                unit = np.arange(len(places)) if groups is None else np.unique(groups[places], return_inverse=True)[1]
                counts[:, places] = _drawn(rng, rows, int(unit.max()) + 1)[:, unit]
            yield counts

    def units(self, members: Bools, groups: Ints | None) -> int:
        """How many things can be drawn from ``members``."""
        return int(members.sum()) if groups is None else len(np.unique(groups[members]))


def interval(values: Floats) -> tuple[float | None, float | None]:
    """The 95% percentile interval of resampled values; None and None where one of them is not finite."""
    if not len(values) or not np.isfinite(values).all():
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _drawn(rng: np.random.Generator, rows: int, size: int) -> Floats:
    """``[rows, size]``: how often each of ``size`` things comes up in ``size`` draws with replacement."""
    drawn = rng.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
