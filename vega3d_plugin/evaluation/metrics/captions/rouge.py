"""ROUGE-L, as COCO's evaluation has it (pycocoevalcap ``rouge/rouge.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

#: Weight of recall.
BETA = 1.2


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence, with the best precision and the best recall over the references.

    Texts are split on single spaces, so that two spaces hold an empty word between them.

    Returns:
        0 to 1.
    """
    words = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = longest_common_subsequence(words, others)
        precision, recall = max(precision, common / len(words)), max(recall, common / len(others))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, by the bit-parallel method of Hyyro (2004): a row of the table is one whole number."""
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places[word] if word in places else 0
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()
