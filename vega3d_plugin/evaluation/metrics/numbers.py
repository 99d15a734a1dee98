"""Numbers in answers: relative accuracy, and how the released code and lmms-eval read them."""

from __future__ import annotations

import math
import re

import numpy as np

#: Confidences of the mean relative accuracy. The released count, ``int((.95 - .5) / .05 + 2)``, is ten by rounding.
CONFIDENCES = np.linspace(0.5, 0.95, 10)

_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
#: Words for 0 to 19.
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_WORDS = {
    **{word: number for number, word in enumerate(ONES)},
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
    "hundred": 100,
    "thousand": 1000,
}  # fmt: skip


def mean_relative_accuracy(said: float, truth: float) -> float:
    """Share of the confidences c, ten from 0.5 to 0.95, for which the relative error is at most 1 - c.

    Args:
        said: may be nan or infinite, which scores 0.
        truth: not 0.
    """
    return share_within(abs(said - truth) / truth)


def share_within(error: float) -> float:
    """Share of the confidences c for which an error is at most 1 - c."""
    return float((error <= 1 - CONFIDENCES).mean())


def first_piece(text: str) -> str:
    """What stands before the first space, without full stops at its end.

    (``src/lmms_eval/tasks/vsibench/utils.py::fuzzy_matching`` of the released branch.)
    """
    return text.split(" ")[0].rstrip(".").strip()


def plain_number(text: str) -> float | None:
    """The number that a text is, nan and infinities included; None when it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def number_within(text: str) -> float | None:
    """The first number in a text, in digits or English words, whichever begins first; None when there is none.

    (lmms-eval 75571cf ``lmms_eval/tasks/vsibench/utils.py::extract_number``.) Words run on over "and" and hyphens:
    "three hundred and twenty-one".
    """
    text = text.lower()
    digits = _DIGITS.search(text)
    words = list(re.finditer("[a-z]+", text))
    first = next((place for place, word in enumerate(words) if word.group() in _WORDS), None)
    if digits and (first is None or digits.start() < words[first].start()):
        number = float(digits.group())
        return number if math.isfinite(number) else None
    return None if first is None else _spoken([word.group() for word in words[first:]])


def _spoken(words: list[str]) -> float:
    total, current = 0, 0
    for word in words:
        if word == "and":
            continue
        if word not in _WORDS:
            break
        if word == "thousand":
            total, current = total + max(current, 1) * 1000, 0
        elif word == "hundred":
            current = max(current, 1) * 100
        else:
            current += _WORDS[word]
    return float(total + current)
