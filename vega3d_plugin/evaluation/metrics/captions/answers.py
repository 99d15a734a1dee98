"""Short answers: SQA3D's cleaning of them, and what LEO calls a match."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..numbers import ONES

_WORDS = {
    "letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right", "behine": "behind", "tv": "TV",
    "chai": "chair", "wasing": "washing", "waslked": "walked", "oclock": "o'clock", "none": "zero",
    **{str(number): word for number, word in enumerate(ONES)}, "20": "twenty", "23": "twenty-three",
}  # fmt: skip
_MISSPELT = re.compile(rf"\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b")
_QUESTION_TYPES = ("what", "is", "how", "can", "which")


def clean_answer(text: str) -> str:
    """An answer as SQA3D compares it (``llava/eval/eval_sqa3d.py::clean_answer``, the same in LEO and SQA3D itself).

    Lower case, single spaces, no other signs than ``,'-:``, some misspellings mended, numbers to twenty as words, one
    digit at the end of a word off, articles before a word off. Blanks that come to the ends later stay there, as there.
    """
    # Not strip: `$` also stands before a line end at the very end.
    text = re.sub(" {2,}", " ", re.sub("^ +", "", re.sub(" +$", "", text.lower())))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    text = _MISSPELT.sub(lambda found: _WORDS[found.group()], text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    text = re.sub(r"\b([a-zA-Z]+)[0-9]\b", r"\1", text)
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)


def match(answer: str, truths: Sequence[str]) -> tuple[bool, bool]:
    """Exact and refined match of cleaned answers (LEO ``evaluator/scanqa_eval.py::answer_match``).

    Refined: without white space, one is part of the other. The first truth that matches in either way decides both, so
    an equal one that comes later counts for nothing; and an empty answer is part of every truth.
    """
    squeezed = "".join(answer.split())
    for truth in truths:
        if answer == truth:
            return True, True
        other = "".join(truth.split())
        if squeezed in other or other in squeezed:
            return False, True
    return False, False


def question_type(question: str) -> str:
    """The type of a question of SQA3D, by how it begins; ``others`` for any other beginning."""
    start = question.lstrip().lower()
    return next((kind for kind in _QUESTION_TYPES if start.startswith(kind)), "others")
