"""SPAR-Bench: twenty spatial tasks on one or several pictures, at three levels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..estimators import Estimator, Mean, MeanOfParts
from ..numbers import plain_number, share_within
from ..rows import Row

LOW = (
    "depth_prediction_oc", "depth_prediction_oo", "distance_prediction_oc", "distance_prediction_oo",
    "depth_prediction_oc_mv", "depth_prediction_oo_mv", "distance_prediction_oo_mv", "distance_prediction_oc_mv",
)  # fmt: skip
#: The task view_change_infer is of this level too, but no released scorer counts it there: they take its name from
#: that of its figure, which has one word more than they cut.
MIDDLE = ("position_matching", "camera_motion_infer")
HIGH = (
    "obj_spatial_relation_oo", "obj_spatial_relation_oc_mv", "obj_spatial_relation_oo_mv", "spatial_imagination_oc",
    "spatial_imagination_oo", "spatial_imagination_oc_mv", "spatial_imagination_oo_mv", "distance_infer_center_oo",
    "distance_infer_center_oo_mv",
)  # fmt: skip
MOVES = "view_change_infer"
LEVELS = {"low": LOW, "middle": MIDDLE, "high": HIGH}
#: Opposite movements; the second of each counts as the first, negative.
_AXES = (
    ("move_right", "move_left"), ("move_up", "move_down"), ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"), ("rotate_up", "rotate_down"),
)  # fmt: skip
_NUMBER = re.compile(r"(?<!\^)\d+\.\d+|(?<!\^)\d+")


class SPARBench(Benchmark):
    """MRA of numbers and movements, accuracy of choices, by task; the overall score is the mean of the tasks."""

    name, title, split, size = "sparbench", "SPAR-Bench", "test", 7207
    types = (*LOW, MOVES, *MIDDLE, *HIGH)
    headline = (("overall", "mean of tasks"),)
    rows = "id, prediction, answer, task; also what lmms-eval logs"
    protocols = (
        Protocol(
            "official",
            "fudan-zvg/spar lmms-eval/lmms_eval/tasks/sparbench/utils.py (lmms-eval's own task is the same)",
            "parse:part-of-truth,first-letter|numbers:first,last-in-mv",
            "Percent. An answer that is part of the true one is right, and so is an empty answer to a choice. The "
            "level middle leaves view_change_infer out.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        kind = self.type(row, "task", "question_type")
        key, value = row.truth()
        truth: Any = row.text(key, str(value) if isinstance(value, int | float) else value)
        if kind in LOW:
            number = plain_number(truth)
            truth = row.number(key, truth if number is None else number)
        elif kind == MOVES:
            truth = _moves(truth)
            if truth is None or not all(map(math.isfinite, truth.values())):
                raise row.problem(
                    f"key {key!r} is {value!r}; movements such as 'move_right:0.5,rotate_up:10' are expected"
                )
        return Question(self.id(row), kind, truth, "", row.where)

    def answer(self, row: Row, protocol: Protocol) -> str:
        """See :class:`Benchmark`."""
        return row.text(*row.said())

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        scores = np.array([0.0 if item.answer is None else score(item) for item in items])
        mean = Mean(scores, 100.0)
        parts = self.parts(items, self.types)
        strata = np.array([self.types.index(item.question.type) for item in items], dtype=np.int64)
        overall = MeanOfParts([(mean, members) for members in parts.values()])
        quantities = [Quantity("overall", "mean of tasks", overall, everything(items), strata=strata)]
        for level, tasks in LEVELS.items():
            there = [parts[task] for task in tasks if task in parts]
            if there:
                part: Estimator = MeanOfParts([(mean, members) for members in there])
                quantities.append(Quantity(level, "mean of tasks", part, np.any(there, axis=0), strata=strata))
        for task, members in parts.items():
            measure = "MRA" if task in LOW or task == MOVES else "accuracy"
            quantities.append(Quantity(task, measure, mean, members, strata=strata))
        notes = (
            [f"overall is the mean of {len(parts)} of {len(self.types)} tasks."] if len(parts) < len(self.types) else []
        )
        return Evaluation(quantities, [{"score": float(one)} for one in scores], notes)


def score(item: Item) -> float:
    """What one answer scores: 0 to 1."""
    kind, said, truth = item.question.type, item.answer, item.question.truth
    if kind in LOW:
        return _close(number_said(said, last=kind.endswith("_mv")), truth)
    if kind == MOVES:
        return _moved(_moves(said), truth)
    said, truth = said.lower(), truth.lower()
    return float(said in truth or said[0] == truth)


def number_said(text: str, *, last: bool) -> float | None:
    """The first number in a text, or the last; without a sign. None when there is none, -1 in place of the last."""
    found = _NUMBER.findall(text)
    if not found:
        return -1.0 if last else None
    return plain_number(found[-1 if last else 0])


def _close(said: float | None, truth: float) -> float:
    """Mean relative accuracy; the absolute error where the truth is 0."""
    if said is None:
        return 0.0
    error = abs(said - truth)
    return share_within(error if truth == 0 else abs(error / truth))


def _moved(said: dict[str, float] | None, truth: dict[str, float]) -> float:
    """Mean over the five axes of the relative accuracy, taken relative to what was SAID, as released."""
    if said is None:
        return 0.0
    return float(np.mean([_close(_along(truth, axis), _along(said, axis)) for axis in _AXES]))


def _along(moves: dict[str, float], axis: tuple[str, str]) -> float:
    return moves.get(axis[0], 0.0) - moves.get(axis[1], 0.0)


def _moves(text: str) -> dict[str, float] | None:
    """Movements by name; None where one is not ``name:number``. Names keep their blanks, and so match nothing then."""
    moves = {}
    for item in text.split(","):
        name, colon, number = item.partition(":")
        amount = plain_number(number) if colon else None
        if amount is None:
            return None
        moves[name] = amount
    return moves
