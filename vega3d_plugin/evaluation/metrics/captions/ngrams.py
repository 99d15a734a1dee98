"""N-grams of a text that is split on white space."""

from __future__ import annotations

from collections import Counter

#: Longest n-grams that BLEU and CIDEr count.
ORDERS = 4


def ngrams(text: str) -> tuple[int, Counter[tuple[str, ...]]]:
    """Words in a text, and its n-grams of 1 to 4 words with their counts."""
    words = text.split()
    return len(words), Counter(
        tuple(words[start : start + order]) for order in range(1, ORDERS + 1) for start in range(len(words) - order + 1)
    )
