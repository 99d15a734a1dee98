"""METEOR over a corpus, through Java."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bootstrap import Floats
from ..estimators import Estimator
from .java import RUNS, JavaTools


class MeteorEstimator(Estimator):
    """METEOR over weighted questions: it adds what it counted on each text, and scores the sums.

    A sum of counts is handed to METEOR as if it were one text, so no formula of its is written here. In adding, METEOR
    leaves out the one run of matches of a text that is matched whole and in order; that the sums are right is checked
    against what it says of all texts.

    Args:
        tools: Java and pycocoevalcap.
        candidates: ``N`` texts.
        references: ``N`` times at least one text.
        scale: factor of the result, 100 for percent.

    Attributes:
        values: of each text alone ``[N]``, times the scale.
        exact: whether sums reproduce the corpus score.

    Raises:
        ScoreError: Java failed.
    """

    def __init__(
        self, tools: JavaTools, candidates: Sequence[str], references: Sequence[Sequence[str]], scale: float = 1.0
    ) -> None:
        self.tools, self.scale = tools, scale
        meteor = tools.meteor()
        pairs = zip(candidates, references, strict=True)
        self.statistics = np.array([meteor.statistics(*pair) for pair in pairs])
        scores, self.corpus = meteor.scores(self.statistics)
        self.values = scores * scale
        self.summed = self.statistics.copy()
        self.summed[scores == 1.0, RUNS] = 0
        _, summed = meteor.scores(self.summed.sum(axis=0, keepdims=True))
        self.exact = bool(abs(summed - self.corpus) < 1e-9)

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`~..estimators.Estimator`."""
        meteor = self.tools.meteor()
        return np.array([meteor.scores(self._texts(row))[1] if row.any() else np.nan for row in counts]) * self.scale

    def _texts(self, counts: Floats) -> Floats:
        """What METEOR is to score: the sum of what it counted, or all texts as often as they count."""
        if self.exact:
            return np.asarray((counts @ self.summed)[None])
        return np.repeat(self.statistics, counts.astype(int), axis=0)
