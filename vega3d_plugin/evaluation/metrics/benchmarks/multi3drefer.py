"""Multi3DRefer: which objects, none, one or several, does a sentence describe?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..boxes import FLOAT32_VOLUME, VOLUME, best_pairing, bounds, box_iou
from ..estimators import Mean
from ..rows import Row, shown

THRESHOLDS = (0.25, 0.5)
#: Boxes are taken until their probabilities sum to this.
PROBABILITY = 0.4
TEMPERATURE = 0.07
#: Boxes of one answer or truth at most; released proposals are 50.
MAX_BOXES = 500

Box = tuple[float, ...]


@dataclass(frozen=True)
class Boxes:
    """An answer: the boxes, and which of the proposals they are (None where the row names the boxes themselves)."""

    boxes: tuple[Box, ...]
    chosen: tuple[int, ...] | None = None


class Multi3DRefer(Benchmark):
    """F1@0.25 and F1@0.5 of a set of boxes per description, by number of targets and distractors."""

    name, title, split, size = "multi3drefer", "Multi3DRefer", "val", 11120
    types = ("zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt")
    headline = (("all", "F1@0.25"), ("all", "F1@0.5"))
    rows = (
        "sample_id, gt_response (list of boxes), question_type, and either scores and objects (one score more than "
        "objects: the zero target) or pred_response (list of boxes)"
    )
    id_parts = ("scene_id", "ann_id")
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D llava/eval/eval_multi3drefer.py",
            "choice:softmax0.07,sum0.4|pairs:iou-sum|iou:aabb+1e-8",
            "A fraction. Boxes are paired for the largest sum of overlaps, which can miss a pairing with more hits. An "
            "overlap of exactly a quarter is a hit.",
        ),
        Protocol(
            "official",
            "3dlg-hcvc/M3DRef-CLIP m3drefclip/evaluation/multi3drefer_evaluator.py",
            "choice:softmax0.07,sum0.4|pairs:iou-sum|iou:aabb32+1.2e-7",
            "Percent. An overlap of exactly a quarter is a miss. The scorer takes boxes; where a row has scores, "
            "VEGA-3D's choice is made.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        key, value = row.need("gt_response", "box")
        return Question(
            self.id(row),
            self.type(row, "question_type", "eval_type"),
            _boxes(row, key, value),
            row.scene,
            row.where,
        )

    def answer(self, row: Row, protocol: Protocol) -> Boxes:
        """See :class:`Benchmark`."""
        if row.first("scores") is None:
            key, value = row.said()
            return Boxes(_boxes(row, key, value))
        key, value = row.need("objects")
        objects = _boxes(row, key, value)
        scores = row.numbers(*row.need("scores"))
        if len(scores) != len(objects) + 1:
            raise row.problem(
                f"{len(scores)} scores for {len(objects)} objects; one score more than objects is expected, the last "
                "for no object at all"
            )
        chosen = tuple(choose(scores))
        return Boxes(tuple(objects[place] for place in chosen), chosen)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        official = protocol.name == "official"
        scores = np.array([self._score(item, official) for item in items])
        unit, scale = ("percent", 100.0) if official else ("fraction", 1.0)
        groups = {"all": everything(items), **self.parts(items, self.types)}
        quantities = [
            Quantity(kind, f"F1@{threshold:g}", Mean(scores[:, column], scale), members, unit)
            for kind, members in groups.items()
            for column, threshold in enumerate(THRESHOLDS)
        ]
        return Evaluation(quantities, [_described(item, row) for item, row in zip(items, scores, strict=True)])

    def _score(self, item: Item, official: bool) -> tuple[float, ...]:
        if item.answer is None:
            return (0.0,) * len(THRESHOLDS)
        said, truth = item.answer.boxes, item.question.truth
        if official and item.question.type.startswith("zt"):
            return (float(not said),) * len(THRESHOLDS)
        return f1_scores(said, truth, single=official)


def choose(scores: Sequence[float]) -> list[int]:
    """Which proposals a model that scores them has named.

    None where the last score, that of no object at all, is the largest. Else softmax at temperature 0.07 over all,
    and the likeliest proposals until they sum to 0.4, or all. In float32, as released.

    Args:
        scores: one more than proposals.
    """
    table = np.asarray(scores, dtype=np.float32)
    if int(table.argmax()) == len(table) - 1:
        return []
    scaled = table / np.float32(TEMPERATURE)
    powers = np.exp(scaled - scaled.max())
    likely = (powers / powers.sum())[:-1]
    order = np.argsort(-likely, kind="stable")
    enough = np.flatnonzero(np.cumsum(likely[order], dtype=np.float32) >= np.float32(PROBABILITY))
    return [int(place) for place in order[: enough[0] + 1 if len(enough) else None]]


def f1_scores(said: Sequence[Box], truth: Sequence[Box], *, single: bool = False) -> tuple[float, ...]:
    """F1 at each of :data:`THRESHOLDS`.

    Args:
        said, truth: boxes, centre and full size.
        single: overlaps in float32 with M3DRef-CLIP's epsilon.

    Returns:
        0 to 1 each; 1 where both are empty.
    """
    if not said or not truth:
        return (float(not said and not truth),) * len(THRESHOLDS)
    first: npt.NDArray[Any] = bounds(said)
    second: npt.NDArray[Any] = bounds(truth)
    if single:
        first, second = first.astype(np.float32), second.astype(np.float32)
    side = max(len(said), len(truth))
    overlaps = np.zeros((side, side), dtype=np.float32)
    overlaps[: len(said), : len(truth)] = box_iou(first, second, FLOAT32_VOLUME if single else VOLUME)
    paired = overlaps[np.arange(side), best_pairing(overlaps)]
    return tuple(2 * float((paired >= threshold).sum()) / (len(said) + len(truth)) for threshold in THRESHOLDS)


def _boxes(row: Row, key: str, value: Any) -> tuple[Box, ...]:
    if not isinstance(value, list):
        raise row.problem(f"key {key!r} is {shown(value)}; a list of boxes is expected")
    if len(value) > MAX_BOXES:
        raise row.problem(f"key {key!r} has {len(value):,} boxes; at most {MAX_BOXES} are scored")
    return tuple(row.box(f"{key}[{place}]", box) for place, box in enumerate(value))


def _described(item: Item, scores: Sequence[float]) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"F1@{threshold:g}": float(score) for threshold, score in zip(THRESHOLDS, scores, strict=True)
    }
    if item.answer is not None and item.answer.chosen is not None:
        values["chosen"] = list(item.answer.chosen)
    return values
