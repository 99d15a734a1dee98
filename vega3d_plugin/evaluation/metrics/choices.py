"""Which letter an answer to a multiple-choice question names: in three scorers, three ways."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What the released branch cuts from an answer first. The last two hold two phrases each, for want of a comma there.
_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:",
)  # fmt: skip


def first_capital(text: str) -> str:
    """The first of the capitals A to F anywhere, and so the A of "Answer: B"; nothing when there is none.

    (``src/lmms_eval/tasks/cvbench/utils.py::extract_characters_regex`` of the released branch, the same in its BLINK.)
    """
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[ABCDEF]", text)
    return found[0] if found else ""


def leading_letter(text: str) -> str:
    """The letter that the text begins with, after brackets and spaces, as a capital; nothing when it does not.

    (lmms-eval ``lmms_eval/tasks/cv_bench/utils.py``.)
    """
    found = re.match(r"[(\s]*([A-Z])", text.strip(), flags=re.IGNORECASE)
    return found[1].upper() if found else ""


def stated_letter(text: str, ends: str = ".") -> str:
    """The first letter of what follows the last "answer is" or "answer:", without brackets, in lower case.

    (Cambrian ``eval/eval/ade/ade_test.py::extract_mcq_answer``.)

    Args:
        text: the answer.
        ends: signs that are cut from its end.
    """
    text = text.lower().strip()
    for keyword in ("answer is", "answer is:", "answer:"):
        text = text.split(keyword)[-1]
    text = text.strip().rstrip(ends).lstrip("(").rstrip(")")
    return text[:1]


def letter_of(choice: str) -> str | None:
    """The letter of a choice such as ``(A)`` or ``A``; None for anything else."""
    found = re.fullmatch(r"\(([A-Z])\)|([A-Z])", choice)
    return found[1] or found[2] if found else None


def named(letter: str, choices: Sequence[str]) -> str | None:
    """The choice of a letter, or None."""
    place = ord(letter) - ord("A")
    return choices[place] if 0 <= place < len(choices) else None
