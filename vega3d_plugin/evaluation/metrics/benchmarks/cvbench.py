"""CV-Bench and BLINK: multiple-choice questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..bootstrap import Floats
from ..choices import first_capital, leading_letter, letter_of, named, stated_letter
from ..estimators import Mean, MeanOfParts
from ..rows import Row

TWO_D, THREE_D = ("ADE20K", "COCO"), "Omni3D"
TASKS = ("Count", "Relation", "Depth", "Distance")


class CVBench(Benchmark):
    """Accuracy by source and task; the overall score is the mean of 2D (two sources) and 3D."""

    name, title, split, size = "cvbench", "CV-Bench", "test", 2638
    types = (*TWO_D, THREE_D)
    headline = (("overall", "accuracy"),)
    rows = "idx, prediction, answer such as (A), source (ADE20K, COCO, Omni3D), task; also what lmms-eval logs"
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D branch spatial-reasoning, src/lmms_eval/tasks/cvbench/utils.py",
            "parse:first-capital-A-F|overall:((ADE20K+COCO)/2+Omni3D)/2",
            "Percent. The first capital from A to F counts, wherever it stands: 'Answer: B' is A.",
        ),
        Protocol(
            "official",
            "cambrian-mllm/cambrian eval/eval/{ade,coco,omni}",
            "parse:after-answer-is|overall:((ADE20K+COCO)/2+Omni3D)/2",
            "Fractions. The letter after 'answer is' or 'answer:', else the first letter, in any case.",
        ),
        Protocol(
            "lmms-eval",
            "EvolvingLMMs-Lab/lmms-eval lmms_eval/tasks/cv_bench/utils.py",
            "parse:leading-letter|overall:mean-of-questions",
            "A fraction: the plain mean over all questions, and so another figure than the benchmark's formula.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        truth, task = read_letter(row), row.first("task")
        kind = self.type(row, "source")
        # Cambrian's scorer for this source alone takes the text of a choice too.
        options = row.first("choices", "options") if kind == THREE_D else None
        choices = row.texts(*options) if options else ()
        return Question(self.id(row), kind, truth, "", row.where, (row.text(*task) if task else "", choices))

    def answer(self, row: Row, protocol: Protocol) -> str:
        """See :class:`Benchmark`."""
        return read_choice(row)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        said = [_letter(item, protocol.name) for item in items]
        right = np.array(
            [_right(item, letter, protocol.name) for item, letter in zip(items, said, strict=True)], dtype=np.float64
        )
        unit, scale = ("percent", 100.0) if protocol.name == "vega3d" else ("fraction", 1.0)
        mean = Mean(right, scale)
        sources = self.parts(items, self.types)
        quantities = []
        missing = [source for source in self.types if source not in sources]
        if protocol.name == "lmms-eval":
            quantities.append(Quantity("overall", "accuracy", mean, everything(items), unit))
        else:
            why = f"not computed: its formula needs all three sources; missing: {', '.join(missing)}" if missing else ""
            two = None if missing else MeanOfParts([(mean, sources[name]) for name in TWO_D])
            every = everything(items)
            strata = np.array([self.types.index(item.question.type) for item in items], dtype=np.int64)
            overall = None if two is None else MeanOfParts([(two, every), (mean, sources[THREE_D])])
            quantities.append(Quantity("overall", "accuracy", overall, every, unit, strata, why))
            if two is not None:
                flat = sources[TWO_D[0]] | sources[TWO_D[1]]
                quantities.append(Quantity("2D", "accuracy", two, flat, unit, strata))
                quantities.append(Quantity("3D", "accuracy", mean, sources[THREE_D], unit))
        quantities += [Quantity(name, "accuracy", mean, members, unit) for name, members in sources.items()]
        tasks = np.array([item.question.extra[0] for item in items], dtype=object)
        for task in TASKS:
            if (members := np.asarray(tasks == task, dtype=bool)).any():
                quantities.append(Quantity(task, "accuracy", mean, members, unit))
        return Evaluation(quantities, _values(said, right))


class Blink(Benchmark):
    """Accuracy of choices, over all questions and by sub-task."""

    name, title, split, size = "blink", "BLINK", "val", None
    types = None
    headline = (("all", "accuracy"),)
    rows = "idx, prediction, answer such as (A), sub_task"
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D branch spatial-reasoning, src/lmms_eval/tasks/blink/utils.py",
            "parse:first-capital-A-F",
            "Percent. The first capital from A to F counts, wherever it stands.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        return Question(self.id(row), self.type(row, "sub_task", "question_type"), read_letter(row), "", row.where)

    def answer(self, row: Row, protocol: Protocol) -> str:
        """See :class:`Benchmark`."""
        return read_choice(row)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        said = ["" if item.answer is None else first_capital(item.answer) for item in items]
        right = np.array([letter == item.question.truth for letter, item in zip(said, items, strict=True)], np.float64)
        mean = Mean(right, 100.0)
        kinds = sorted({item.question.type for item in items})
        groups = {"all": everything(items), **self.parts(items, kinds)}
        return Evaluation(
            [Quantity(name, "accuracy", mean, among) for name, among in groups.items()], _values(said, right)
        )


def read_choice(row: Row) -> str:
    """What the model said."""
    return row.text(*row.said())


def read_letter(row: Row) -> str:
    """The letter of the true choice."""
    key, value = row.truth()
    letter = letter_of(row.text(key, value))
    if letter is None:
        raise row.problem(f"key {key!r} is {value!r}; a letter in brackets such as '(A)' is expected")
    return letter


def _letter(item: Item, protocol: str) -> str:
    if item.answer is None:
        return ""
    if protocol == "vega3d":
        return first_capital(item.answer)
    if protocol == "lmms-eval":
        return leading_letter(item.answer)
    return stated_letter(item.answer, ".:," if item.question.type == THREE_D else ".")


def _right(item: Item, letter: str, protocol: str) -> bool:
    truth = item.question.truth
    if protocol != "official":
        return bool(letter == truth)
    # One letter is all that is left of an answer, so only choices of one letter can be named by their text.
    return bool(letter) and letter in (truth.lower(), named(truth, item.question.extra[1]))


def _values(said: Sequence[str], right: Floats) -> list[dict[str, Any]]:
    return [{"understood": letter, "correct": int(one)} for letter, one in zip(said, right, strict=True)]
