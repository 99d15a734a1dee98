"""SQA3D: questions about a scene from where somebody stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..captions.answers import clean_answer, match, question_type
from ..captions.captions import CaptionMetrics
from ..captions.java import JavaTools
from ..estimators import Mean
from ..rows import Row, shown


class SQA3D(Benchmark):
    """Exact match of cleaned answers, by the first word of the question."""

    name, title, split, size = "sqa3d", "SQA3D", "test", 3519
    types = ("what", "is", "how", "can", "which", "others")
    headline = (("all", "EM"), ("all", "EM-R"), ("all", "accuracy"))
    rows = "sample_id, pred_response, gt_response, question_type (or question)"
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D llava/eval/eval_sqa3d.py",
            "em:cleaned",
            "Percent. There is no refined match in the released script.",
        ),
        Protocol(
            "leo",
            "embodied-generalist/embodied-generalist evaluator/sqa3d_eval.py",
            "em:cleaned|text:cleaned",
            "Fractions. EM-R counts an answer that is part of a true one, or the reverse; an empty one is part of all.",
        ),
        Protocol(
            "official",
            "SilongYong/SQA3D LLM/eval_sqa3d_llm.py::compute_accuracy",
            "match:cleaned,part-or-shared-word",
            "A fraction, and lenient: one word in common with the true answer is enough. Only the answer is cleaned. "
            "Rows of one question in several situations count one by one here.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        return Question(self.id(row), self._kind(row), _truths(row), row.scene, row.where)

    def answer(self, row: Row, protocol: Protocol) -> str:
        """See :class:`Benchmark`."""
        return row.text(*row.said())

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        cleaned = [clean_answer(item.answer or "") for item in items]
        truths = [[clean_answer(text) for text in item.question.truth] for item in items]
        given = np.array([item.answer is not None for item in items])
        pairs = list(zip(cleaned, truths, items, strict=True))
        if protocol.name == "leo":
            matches = np.array([match(answer, truth) for answer, truth, _ in pairs]) & given[:, None]
            measures = {"EM": matches[:, 0], "EM-R": matches[:, 1]}
        elif protocol.name == "official":
            lenient = np.array([shares_a_word(answer, item.question.truth[0]) for answer, _, item in pairs])
            measures = {"accuracy": lenient & given}
        else:
            measures = {"EM": np.array([answer == truth[0] for answer, truth, _ in pairs]) & given}
        unit, scale = ("percent", 100.0) if protocol.name == "vega3d" else ("fraction", 1.0)
        groups = {"all": everything(items), **self.parts(items, self.types)}
        quantities = [
            Quantity(kind, name, Mean(values.astype(np.float64), scale), members, unit)
            for kind, members in groups.items()
            for name, values in measures.items()
        ]
        values: list[dict[str, Any]] = [
            {"cleaned": answer, **{name: int(found[place]) for name, found in measures.items()}}
            for place, answer in enumerate(cleaned)
        ]
        if protocol.name == "leo":
            names = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L")
            metrics = CaptionMetrics.of(cleaned, truths, JavaTools.find(), unit="fraction", measures=names)
            quantities += metrics.quantities("all", groups["all"])
            values = [{**row, **metrics.of_item(place)} for place, row in enumerate(values)]
        return Evaluation(quantities, values)

    def _kind(self, row: Row) -> str:
        if row.first("question_type") is None and (asked := row.first("question")) is not None:
            return question_type(row.text(*asked))
        return self.type(row)


def shares_a_word(answer: str, truth: str) -> bool:
    """Equal, part of the truth (also without white space), or with a word in common."""
    joined = "".join(answer.split()) in "".join(truth.split())
    return answer in truth or joined or bool(set(answer.split()) & set(truth.split()))


def _truths(row: Row) -> tuple[str, ...]:
    """The true answers, wherever rows keep them: results, the benchmark's annotations, or a conversation."""
    found = row.first("gt_response", "answers")
    if found is None:
        key, turns = row.need("conversations")
        last = turns[-1] if isinstance(turns, list) and turns else None
        found = (f"{key}[-1].value", last.get("value") if isinstance(last, dict) else None)
    key, value = found
    if isinstance(value, list):
        value = [one.get("answer") if isinstance(one, dict) else one for one in value]
    if not isinstance(value, str | list):
        raise row.problem(f"key {key!r} is {shown(value)}; the true answer is expected")
    return row.texts(key, value)
