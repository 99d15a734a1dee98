"""BLEU-1 to BLEU-4 of a corpus, as COCO's evaluation has it (pycocoevalcap ``bleu/bleu_scorer.py``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import Floats
from ..estimators import Estimator
from .ngrams import ORDERS, ngrams

#: Added to counts above and below the fraction, so that nothing is divided by zero.
TINY, SMALL = 1e-15, 1e-9


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What BLEU sums over a corpus.

    Args:
        candidates: ``N`` texts.
        references: ``N`` times at least one text.

    Returns:
        ``[N, 10]``: n-grams found in the references (clipped at the most any of them has), n-grams there are, each
        for 1 to 4 words; length of the candidate; length of the closest reference, the shorter one on ties.
    """
    return np.array([_counts(*pair) for pair in zip(candidates, references, strict=True)], dtype=np.float64)


def bleu(counts: Floats) -> Floats:
    """BLEU-1 to BLEU-4 from (sums of) counts ``[..., 10]``: ``[..., 4]``, as fractions."""
    correct, guessed = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS]
    precision = np.cumprod((correct + TINY) / (guessed + SMALL), axis=-1)
    scores = precision ** (1 / np.arange(1, ORDERS + 1))
    ratio = (counts[..., 8] + TINY) / (counts[..., 9] + SMALL)
    # An empty candidate has a ratio near 0 and so a penalty of exactly 0.
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return np.asarray(scores * penalty[..., None])


@dataclass(frozen=True)
class Bleu(Estimator):
    """BLEU of one order over weighted questions.

    Attributes:
        counts: ``[N, 10]`` from :func:`bleu_counts`.
        order: 1 to 4.
        scale: factor of the result, 100 for percent.
    """

    counts: Floats
    order: int
    scale: float = 1.0

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`~..estimators.Estimator`."""
        scores = bleu(counts @ self.counts)[:, self.order - 1] * self.scale
        return np.where(counts.sum(axis=1) > 0, scores, math.nan)


def _counts(candidate: str, references: Sequence[str]) -> list[int]:
    length, grams = ngrams(candidate)
    most: Counter[tuple[str, ...]] = Counter()
    lengths = []
    for reference in references:
        words, counts = ngrams(reference)
        lengths.append(words)
        most |= counts
    found = [0] * ORDERS
    for gram, count in grams.items():
        found[len(gram) - 1] += min(count, most[gram])
    there = [max(0, length - order + 1) for order in range(1, ORDERS + 1)]
    return [*found, *there, length, min(lengths, key=lambda words: (abs(words - length), words))]
