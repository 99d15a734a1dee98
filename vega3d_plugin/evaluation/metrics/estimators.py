"""A score as a function of how often each question counts, so that subsets and resamples are one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Bools, Floats


class Estimator(ABC):
    """A score over weighted questions."""

    @abstractmethod
    def estimate(self, counts: Floats) -> Floats:
        """The score of each weighting.

        Args:
            counts: ``[R, N]``, how often each question counts.

        Returns:
            ``[R]``, NaN where no question counts.
        """

    def over(self, members: Bools) -> Estimator:
        """What scores resamples of ``members`` ``[N]``: itself, unless something is taken from the whole set first."""
        return self


@dataclass(frozen=True)
class Mean(Estimator):
    """The mean of one value per question.

    Attributes:
        values: ``[N]``.
        scale: factor of the result, 100 for percent.
    """

    values: Floats
    scale: float = 1.0

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`Estimator`."""
        totals = counts.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(counts @ self.values / totals * self.scale)


@dataclass(frozen=True)
class MeanOfParts(Estimator):
    """The plain mean of scores over parts of the questions, however many questions each has.

    Attributes:
        parts: estimators, each with the questions ``[N]`` it is taken over.
    """

    parts: Sequence[tuple[Estimator, Bools]]

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`Estimator`."""
        return np.asarray(np.mean([part.estimate(counts * members) for part, members in self.parts], axis=0))
