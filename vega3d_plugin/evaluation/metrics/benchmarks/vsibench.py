"""VSI-Bench: eight spatial tasks on videos, as choices and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..bootstrap import Bools, Floats
from ..estimators import Estimator, Mean, MeanOfParts
from ..numbers import first_piece, mean_relative_accuracy, number_within, plain_number
from ..rows import Row

NUMBERS = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
DIRECTIONS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
CHOICES = ("object_rel_distance", *DIRECTIONS, "route_planning", "obj_appearance_order")
DIRECTION = "object_rel_direction"
#: In the order of the benchmark's own table.
TASKS = (*NUMBERS, "object_rel_distance", DIRECTION, "route_planning", "obj_appearance_order")


class VSIBench(Benchmark):
    """MRA of numbers and accuracy of choices by task; the overall score is the plain mean of the eight tasks."""

    name, title, split, size = "vsibench", "VSI-Bench", "test", 5130
    types = (*NUMBERS, *CHOICES)
    headline = (("overall", "mean of tasks"),)
    rows = "id, prediction, ground_truth, question_type; also what lmms-eval logs with --log_samples"
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D branch spatial-reasoning, src/lmms_eval/tasks/vsibench/utils.py",
            "parse:first-piece",
            "Percent. The answer is what stands before the first space: '(D)', 'Answer: B', 'four' and '150cm' fail.",
        ),
        Protocol(
            "official",
            "vision-x-nyu/thinking-in-space lmms_eval/tasks/vsibench/utils.py",
            "parse:first-piece",
            "Percent, parsed as vega3d. Without any question on directions it is the mean of the other tasks.",
        ),
        Protocol(
            "lmms-eval",
            "EvolvingLMMs-Lab/lmms-eval 75571cf lmms_eval/tasks/vsibench/utils.py",
            "parse:first-piece,first-number",
            "Fractions. A number is the first one anywhere in the answer, in digits or words; choices as vega3d.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        kind = self.type(row)
        key, value = row.need("ground_truth")
        truth: str | float
        if kind in CHOICES:
            truth = row.text(key, value)
        else:
            number = plain_number(value) if isinstance(value, str) else value
            truth = row.number(key, value if number is None else number)
            if truth <= 0:
                raise row.problem(f"key {key!r} is {value!r}; a number above 0 is expected, for errors relative to it")
        return Question(self.id(row), kind, truth, row.scene, row.where)

    def answer(self, row: Row, protocol: Protocol) -> str:
        """See :class:`Benchmark`."""
        return row.text(*row.said())

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        understood = [None if item.answer is None else _understood(item, protocol.name) for item in items]
        scores = np.array([_score(item, said) for item, said in zip(items, understood, strict=True)])
        unit, scale = ("fraction", 1.0) if protocol.name == "lmms-eval" else ("percent", 100.0)
        parts = self.parts(items, self.types)
        tasks = _tasks(Mean(scores, scale), parts)
        strata = np.array([self.types.index(item.question.type) for item in items], dtype=np.int64)
        missing = [kind for kind in DIRECTIONS if kind not in parts]
        why = ""
        # The benchmark's own scorer gets by without any question on directions; the others stop.
        if missing and not (protocol.name == "official" and len(missing) == len(DIRECTIONS)):
            why = f"not computed: the scorer needs all difficulties of {DIRECTION}; missing: {', '.join(missing)}"
        overall = None if why else MeanOfParts([tasks[task] for task in TASKS if task in tasks])
        quantities = [Quantity("overall", "mean of tasks", overall, everything(items), unit, strata, why)]
        for task, (estimator, members) in tasks.items():
            measure = "MRA" if task in NUMBERS else "accuracy"
            quantities.append(Quantity(task, measure, estimator, members, unit, strata))
        some = 0 < len(tasks) < len(TASKS) and not why
        notes = [f"overall is the mean of {len(tasks)} of {len(TASKS)} tasks."] if some else []
        return Evaluation(quantities, _values(understood, scores), notes)


def _understood(item: Item, protocol: str) -> str | float | None:
    if item.question.type in CHOICES:
        return first_piece(item.answer)
    return number_within(item.answer) if protocol == "lmms-eval" else plain_number(first_piece(item.answer))


def _tasks(mean: Mean, parts: dict[str, Bools]) -> dict[str, tuple[Estimator, Bools]]:
    """What each task scores, and over which questions; directions by difficulty where one of those is absent."""
    found: dict[str, tuple[Estimator, Bools]] = {}
    for task in TASKS:
        if task in parts:
            found[task] = (mean, parts[task])
        elif task == DIRECTION:
            there = {kind: (mean, parts[kind]) for kind in DIRECTIONS if kind in parts}
            members = [among for _, among in there.values()]
            whole = len(there) == len(DIRECTIONS)
            found |= {DIRECTION: (MeanOfParts(list(there.values())), np.any(members, axis=0))} if whole else there
    return found


def _score(item: Item, said: Any) -> float:
    if said is None:
        return 0.0
    if item.question.type in CHOICES:
        return float(said.lower() == item.question.truth.lower())
    return mean_relative_accuracy(said, item.question.truth)


def _values(understood: Sequence[Any], scores: Floats) -> list[dict[str, Any]]:
    # JSON has no nan.
    said = [str(one) if isinstance(one, float) and not np.isfinite(one) else one for one in understood]
    return [{"understood": one, "score": float(score)} for one, score in zip(said, scores, strict=True)]
