"""CIDEr-D, as COCO's evaluation has it under the name CIDEr (pycocoevalcap ``cider/cider_scorer.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import Bools, Floats, Ints
from ..estimators import Estimator, Mean
from .ngrams import ORDERS, ngrams

#: Width of the penalty on lengths, which are counted in bigrams.
SIGMA = 6.0


@dataclass(frozen=True)
class _Entries:
    """Numbers in a sparse table: the row of each, its n-gram, and its value."""

    row: Ints
    gram: Ints
    value: Floats

    def sums(self, weights: Floats, rows: int) -> Floats:
        """``[rows]``: in each row, the sum of its values times the weights of their n-grams."""
        return np.bincount(self.row, self.value * weights[self.gram], minlength=rows).astype(np.float64, copy=False)


class Cider(Estimator):
    """CIDEr-D over weighted questions.

    Document frequency counts the questions that have an n-gram in any reference. So a score depends on the set it is
    taken over, and for one question it is 0. Cosine similarities are sums over n-grams of a count times the squared
    inverse frequency, so that another set costs a few sums and no recount.

    Args:
        candidates: ``N`` texts.
        references: ``N`` times at least one text.
        scale: factor of the result, 100 for percent.
    """

    def __init__(self, candidates: Sequence[str], references: Sequence[Sequence[str]], scale: float = 1.0) -> None:
        self.scale = scale
        self.size = len(candidates)
        self.known: dict[tuple[str, ...], int] = {}
        there: list[tuple[int, int, int]] = []
        own: list[tuple[int, int, int]] = []
        theirs: list[tuple[int, int, int]] = []
        shared: list[tuple[int, int, int]] = []
        items: list[int] = []
        penalties: list[float] = []
        for item, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
            length, grams = ngrams(candidate)
            own += [(item * ORDERS + len(g) - 1, self._number(g), count * count) for g, count in grams.items()]
            seen: set[tuple[str, ...]] = set()
            for text in texts:
                words, others = ngrams(text)
                row = len(items) * ORDERS - 1
                theirs += [(row + len(g), self._number(g), count * count) for g, count in others.items()]
                shared += [
                    (row + len(g), self._number(g), min(grams[g], count) * count)
                    for g, count in others.items()
                    if g in grams
                ]
                seen |= others.keys()
                items.append(item)
                difference = max(length - 1, 0) - max(words - 1, 0)
                penalties.append(np.exp(-(difference**2) / (2 * SIGMA**2)))
            there += [(item, self._number(gram), 1) for gram in seen]
        self.there, self.own, self.theirs, self.shared = map(_entries, (there, own, theirs, shared))
        self.items, self.penalties = np.array(items, dtype=np.int64), np.array(penalties)

    def scores(self, members: Bools) -> Floats:
        """Score of each question, times the scale, with the document frequencies of some of them.

        Args:
            members: ``[N]``, questions whose references are counted; at least one.

        Returns:
            ``[N]``.
        """
        frequency = np.bincount(self.there.gram, members[self.there.row].astype(np.float64), minlength=len(self.known))
        weights = (np.log(members.sum()) - np.log(np.maximum(frequency, 1.0))) ** 2
        own = np.sqrt(self.own.sums(weights, self.size * ORDERS))
        theirs = np.sqrt(self.theirs.sums(weights, len(self.items) * ORDERS))
        shared = self.shared.sums(weights, len(self.items) * ORDERS)
        lengths = own.reshape(-1, ORDERS)[self.items].ravel() * theirs
        similarity = np.divide(shared, lengths, out=np.zeros_like(shared), where=lengths > 0)
        pairs = similarity.reshape(-1, ORDERS).mean(axis=1) * self.penalties
        sums = np.bincount(self.items, pairs, minlength=self.size)
        return np.asarray(10 * self.scale * sums / np.bincount(self.items, minlength=self.size))

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`~..estimators.Estimator`. Document frequencies count a question once, however often it counts."""
        return np.array([float(self.over(row > 0).estimate(row[None])[0]) if row.any() else np.nan for row in counts])

    def over(self, members: Bools) -> Estimator:
        """See :class:`~..estimators.Estimator`. Resamples keep the document frequencies of the questions as they are.

        A question that is drawn twice would make its n-grams look common: with frequencies taken anew, 2,000 captions
        that scored 226.5 had an interval of 218.5 to 226.5, and with those of the benchmark 222.6 to 230.9.
        """
        return Mean(self.scores(members))

    def _number(self, gram: tuple[str, ...]) -> int:
        return self.known.setdefault(gram, len(self.known))


def _entries(rows: list[tuple[int, int, int]]) -> _Entries:
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return _Entries(table[:, 0], table[:, 1], table[:, 2].astype(np.float64))
