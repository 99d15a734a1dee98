"""Scan2Cap: describe an object; a caption counts only where the object was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Question, everything
from ..captions.captions import CaptionMetrics
from ..captions.java import JavaTools
from ..errors import RowProblem
from ..rows import Row, shown

#: Overlap of the found object with the true one that a caption needs.
GATE = 0.5
#: Words of a reference that the benchmark's own scorer keeps.
WORDS = 30
MEASURES = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L")


@dataclass(frozen=True)
class Caption:
    """What the model said of an object.

    Attributes:
        text: as it was said.
        found: whether the object was found; captions of others count as none.
    """

    text: str
    found: bool = True


class Scan2Cap(Benchmark):
    """CIDEr, BLEU-4, METEOR and ROUGE-L of gated captions (C@0.5 and so on), over all described objects."""

    name, title, split, size = "scan2cap", "Scan2Cap", "val", 2068
    types = None
    headline = (("all", "CIDEr"), ("all", "BLEU-4"))
    rows = "sample_id, pred_response, gt_response (list of texts), optionally iou: below 0.5 the caption counts as none"
    id_parts = ("scene_id", "object_id", "object_name")
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D llava/eval/eval_scan2cap.py; the gate: its branch spatial-reasoning, "
            "src/lmms_eval/tasks/scan2cap/utils.py",
            "text:lower,spaced-.-,|sos-eos|gate:iou>=0.5",
            "Percent. No tokeniser: other signs stay on their words. A caption that does not count is the empty text, "
            "which still scores, since 'sos' and 'eos' match.",
        ),
        Protocol(
            "official",
            "daveredrum/Scan2Cap lib/eval_helper.py",
            "text:as-is|refs:token,30-words|sos-eos|gate:iou>0.5",
            "Fractions. References are the first 30 words of the key token; captions are taken as tokenised already.",
        ),
        Protocol(
            "leo",
            "embodied-generalist/embodied-generalist evaluator/cap_eval.py",
            "text:case-kept,spaced-.|refs:corpus|sos-eos|gate:iou>=0.5",
            "Fractions, against LEO's own corpus file. Its sentence similarity is not computed.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        key, value = row.need("annotations", "gt_response")
        truth = row.texts(key, value)
        if protocol.name == "leo" and not all(text.startswith("sos ") for text in truth):
            raise row.problem(f"key {key!r} is {shown(truth[0])}; texts of LEO's corpus begin with 'sos '")
        return Question(self.id(row), "all", truth, row.scene, row.where)

    def questions(self, rows: Iterable[Row], protocol: Protocol) -> tuple[list[Question], list[str]]:
        """See :class:`Benchmark`. Official references are the rows of ScanRefer, several for an object."""
        if protocol.name != "official":
            return super().questions(rows, protocol)
        found: dict[str, Question] = {}
        bad = []
        for row in rows:
            try:
                name = "|".join(map(row.id_of, self.id_parts))
                text = " ".join(_tokens(row)[:WORDS])
            except RowProblem as problem:
                bad.append(str(problem))
                continue
            truth = (*(found[name].truth if name in found else ()), f"sos {text} eos")
            found[name] = Question(name, "all", truth, row.scene, row.where)
        return list(found.values()), bad

    def answer(self, row: Row, protocol: Protocol) -> Caption:
        """See :class:`Benchmark`."""
        text = row.text(*row.said())
        if (iou := row.first("iou")) is None:
            return Caption(text)
        overlap = row.number(*iou)
        return Caption(text, overlap > GATE if protocol.name == "official" else overlap >= GATE)

    def contradicts(self, question: Question, row: Row, protocol: Protocol) -> bool:
        """See :class:`Benchmark`. References of the other protocols are in forms that no row of predictions has."""
        return protocol.name == "vega3d" and super().contradicts(question, row, protocol)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        candidates = [prepare(item.answer, protocol.name) for item in items]
        references = [
            [prepare(Caption(text), "vega3d") for text in item.question.truth]
            if protocol.name == "vega3d"
            else list(item.question.truth)
            for item in items
        ]
        unit = "percent" if protocol.name == "vega3d" else "fraction"
        metrics = CaptionMetrics.of(candidates, references, JavaTools.find(), unit=unit, measures=MEASURES)
        values: list[dict[str, Any]] = [
            {"scored_as": candidate, **metrics.of_item(place)} for place, candidate in enumerate(candidates)
        ]
        closed = sum(item.answer is not None and not item.answer.found for item in items)
        notes = (f"{closed} captions count as none: their object was not found.",) if closed else ()
        return Evaluation(metrics.quantities("all", everything(items)), values, notes)


def prepare(caption: Caption | None, protocol: str) -> str:
    """A caption as the scorers of ``protocol`` get it; None and captions of objects not found count as none."""
    counts = caption is not None and caption.found
    text = caption.text if caption is not None and counts else ""
    if protocol == "vega3d":
        return f"sos {text.replace('.', ' . ').replace(',', ' , ').lower()} eos"
    if not counts:
        return "sos eos"
    return f"sos {text} eos" if protocol == "official" else f"sos {text} eos".replace(". ", " . ")


def _tokens(row: Row) -> list[str]:
    key, value = row.need("token")
    if not isinstance(value, list):
        raise row.problem(f"key {key!r} is {shown(value)}; a list of words is expected")
    return [row.text(f"{key}[{place}]", word) for place, word in enumerate(value)]
