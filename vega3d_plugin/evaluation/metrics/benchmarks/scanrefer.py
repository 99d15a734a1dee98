"""ScanRefer: is the object that a sentence describes the one whose box is named?"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..boxes import bounds, box_iou
from ..errors import RowProblem, ScoreError
from ..estimators import Mean
from ..rows import Row

THRESHOLDS = (0.25, 0.5)
#: Classes of NYU40 that count as themselves in VEGA-3D's files; all others are :data:`OTHERS`.
KEPT_CLASSES = frozenset([*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39])
#: As ScanRefer itself has them: the same without walls and floors.
OFFICIAL_CLASSES = KEPT_CLASSES - {1, 2}
OTHERS = 39


class ScanRefer(Benchmark):
    """Acc@0.25 and Acc@0.5 of one box per description, for objects alone of their class in the scene and others."""

    name, title, split, size = "scanrefer", "ScanRefer", "val", 9508
    types = ("unique", "multiple")
    headline = (("all", "Acc@0.25"), ("all", "Acc@0.5"))
    rows = "sample_id, pred_response (centre and full size, metres), gt_response, question_type"
    id_parts = ("scene_id", "object_id", "ann_id")
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D llava/eval/eval_scanrefer.py",
            "iou:aabb+1e-8",
            "Percent. An overlap of exactly a quarter is a miss.",
        ),
        Protocol(
            "official",
            "daveredrum/ScanRefer benchmark/eval.py",
            "iou:aabb+1e-8",
            "A fraction; the same hits. Its unique and multiple count 18 classes, without walls and floors.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        key, value = row.need("gt_response", "box", "gt_box")
        kind = self.type(row, "question_type", "eval_type")
        return Question(self.id(row), kind, row.box(key, value), row.scene, row.where)

    def answer(self, row: Row, protocol: Protocol) -> tuple[float, ...]:
        """See :class:`Benchmark`."""
        key, value = row.said("pred_box")
        return row.box(key, value)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        ious = np.array([0.0 if item.answer is None else _iou(item.answer, item.question.truth) for item in items])
        percent = protocol.name == "vega3d"
        unit, scale = ("percent", 100.0) if percent else ("fraction", 1.0)
        groups = {"all": everything(items), **self.parts(items, self.types)}
        hits = {f"Acc@{threshold:g}": (ious >= threshold).astype(np.float64) for threshold in THRESHOLDS}
        quantities = [
            Quantity(kind, name, Mean(values, scale), members, unit)
            for kind, members in groups.items()
            for name, values in hits.items()
        ]
        return Evaluation(
            quantities,
            [
                {"iou": float(iou), **{name: int(values[place]) for name, values in hits.items()}}
                for place, iou in enumerate(ious)
            ],
        )


def read_label_ids(path: str | Path) -> dict[str, int]:
    """The NYU40 class of each name that annotators gave, from ScanNet's ``scannetv2-labels.combined.tsv``.

    Raises:
        ScoreError: no such file, or another.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        header, *rest = rows
        name, number = header.index("raw_category"), header.index("nyu40id")
        return {row[name]: int(row[number]) for row in rest}
    except OSError as error:
        raise ScoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, IndexError, UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(
            f"{path} is no table of ScanNet's labels: {error}. Expected is scannetv2-labels.combined.tsv, with the "
            "columns raw_category and nyu40id."
        ) from error


def unique_or_multiple(
    rows: Sequence[Mapping[str, Any] | Row], label_ids: Mapping[str, int], classes: Collection[int] = KEPT_CLASSES
) -> list[str]:
    """Whether the object of each description is the only ANNOTATED one of its class in its scene, in these rows.

    So a scene's other chairs count only if somebody described them in the same file: rows of another split, or a part
    of them, give other types. (VEGA-3D ``scripts/3d/preprocessing/process_scanrefer.py``, taken from M3DRef-CLIP.)

    Args:
        rows: of a ScanRefer file, with ``scene_id``, ``object_id``, ``object_name``.
        label_ids: from :func:`read_label_ids`. Underscores in names are spaces; unknown names are :data:`OTHERS`.
        classes: that count as themselves: :data:`KEPT_CLASSES`, or :data:`OFFICIAL_CLASSES`.

    Returns:
        ``unique`` or ``multiple`` for each row.

    Raises:
        ScoreError: a row without those keys, or an object whose names are of different classes.
    """
    found = []
    for kind in kinds_of_rows(rows, label_ids, classes):
        if isinstance(kind, RowProblem):
            raise kind
        found.append(kind)
    return found


def kinds_of_rows(
    rows: Sequence[Mapping[str, Any] | Row], label_ids: Mapping[str, int], classes: Collection[int] = KEPT_CLASSES
) -> list[str | RowProblem]:
    """As :func:`unique_or_multiple`, with what is wrong with a row in its place; such a row counts for no other."""
    checked = [row if isinstance(row, Row) else Row(row, f"row {place}") for place, row in enumerate(rows, 1)]
    named = [_named(row, label_ids, classes) for row in checked]
    # An object counts once, under the name of its first description.
    first: dict[tuple[str, str], int] = {}
    for object_ in named:
        if not isinstance(object_, RowProblem):
            first.setdefault((object_.scene, object_.number), object_.label)
    alike = Counter((scene, label) for (scene, _), label in first.items())
    found: list[str | RowProblem] = []
    for row, object_ in zip(checked, named, strict=True):
        if isinstance(object_, RowProblem):
            found.append(object_)
        elif (count := alike[object_.scene, object_.label]) == 0:
            found.append(
                row.problem(
                    f"object {object_.number} of {object_.scene} is called {object_.name!r} here, but a thing of "
                    "another class before"
                )
            )
        else:
            found.append("unique" if count == 1 else "multiple")
    return found


@dataclass(frozen=True)
class _Named:
    """The object of a description, and the class that its name says."""

    scene: str
    number: str
    name: str
    label: int


def _named(row: Row, label_ids: Mapping[str, int], classes: Collection[int]) -> _Named | RowProblem:
    try:
        scene, number, name = row.id_of("scene_id"), row.id_of("object_id"), row.text(*row.need("object_name"))
    except RowProblem as problem:
        return problem
    label = label_ids.get(name.replace("_", " "), OTHERS)
    return _Named(scene, number, name, label if label in classes else OTHERS)


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    return float(box_iou(bounds([first]), bounds([second]))[0, 0])
