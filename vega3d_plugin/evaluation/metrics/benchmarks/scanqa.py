"""ScanQA: questions about a scene, answered in a few words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmark import Benchmark, Evaluation, Item, Protocol, Quantity, Question, everything
from ..bootstrap import Floats
from ..captions.answers import clean_answer, match
from ..captions.captions import MEASURES, CaptionMetrics
from ..captions.java import JavaTools
from ..errors import ScoreError
from ..estimators import Mean
from ..rows import Row

_INSTRUCTION = " Answer the question simply."


class ScanQA(Benchmark):
    """Exact match and caption metrics of short answers; three scorers, whose CIDErs cannot be compared."""

    name, title, split, size = "scanqa", "ScanQA", "val", 4675
    types = None
    headline = (("all", "CIDEr"), ("all", "EM"))
    rows = (
        "sample_id and pred_response, or question_id and answer_top10; the answers (a list) in the references: "
        "scanqa_val_llava_style.json or ScanQA_v1.0_val.json"
    )
    protocols = (
        Protocol(
            "vega3d",
            "H-EmbodVis/VEGA-3D llava/eval/eval_scanqa.py",
            "em:raw|text:raw,final-.-cut",
            "Percent, but EM is a fraction. No tokeniser and no lower case; EM compares the answer as it was said.",
        ),
        Protocol(
            "official",
            "ATR-DBI/ScanQA scripts/score.py",
            "em:raw|text:ptb",
            "Percent. The Penn Treebank tokeniser goes before every caption metric, so they need Java.",
        ),
        Protocol(
            "leo",
            "embodied-generalist/embodied-generalist evaluator/scanqa_eval.py",
            "em:cleaned|text:cleaned",
            "Fractions. Answers are cleaned as in SQA3D first. EM-R counts an answer that is part of a true one.",
        ),
    )

    def question(self, row: Row, protocol: Protocol) -> Question:
        """See :class:`Benchmark`."""
        found = row.first("answers")
        if found is None and isinstance(row.values.get("gt_response"), list):
            found = row.need("gt_response")
        if found is None:
            raise row.problem(
                "no key 'answers': ScanQA has several true answers to a question, and the rows of the released script "
                "hold the first alone. Pass the references, scanqa_val_llava_style.json or ScanQA_v1.0_val.json"
            )
        asked = _asked(row)
        return Question(self.id(row), question_class(asked), row.texts(*found), row.scene, row.where)

    def answer(self, row: Row, protocol: Protocol) -> tuple[str, ...]:
        """See :class:`Benchmark`. The answers of one model to a question, best first."""
        if (found := row.first("answer_top10", "pred_answers_at10")) is not None:
            return row.texts(*found)
        return (row.text(*row.said()),)

    def aliases(self, name: str) -> tuple[str, ...]:
        """See :class:`Benchmark`.

        The released rows put ``scanqa_`` before the benchmark's id and the number of a true answer behind it, which
        their script takes as 0.
        """
        return re.sub("_[^_]*$", "_0", name), re.sub("^scanqa_(.+)_[^_]*$", r"\1", name), f"scanqa_{name}_0"

    def contradicts(self, question: Question, row: Row, protocol: Protocol) -> bool:
        """See :class:`Benchmark`. A row that names one true answer or several: are they among those of the question?"""
        found = row.first("gt_response", "answers")
        if found is None or not isinstance(found[1], str | list):
            return False
        named = [found[1]] if isinstance(found[1], str) else found[1]
        return any(answer not in question.truth for answer in named)

    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """See :class:`Benchmark`."""
        said = [item.answer[0] if item.answer else "" for item in items]
        truths = [list(item.question.truth) for item in items]
        given = np.array([item.answer is not None for item in items])
        if protocol.name == "leo":
            return _leo(items, said, truths, given)
        exact = np.array([answer in truth for answer, truth in zip(said, truths, strict=True)]) & given
        unit, scale = ("fraction", 1.0) if protocol.name == "vega3d" else ("percent", 100.0)
        matches = {"EM": exact.astype(np.float64)}
        if protocol.name == "vega3d":
            metrics = CaptionMetrics.of([answer.rstrip(".") for answer in said], truths, JavaTools.find())
            return _evaluation(items, matches, unit, scale, metrics, {})
        if all(item.answer is None or len(item.answer) > 1 for item in items):
            any_of = [any(answer in item.question.truth for answer in item.answer or ()) for item in items]
            matches["EM@10"] = np.array(any_of, dtype=np.float64)
        types = self.parts(items, CLASSES) if all(item.question.type for item in items) else {}
        return _evaluation(items, matches, unit, scale, _tokenised(said, truths), types)


CLASSES = ("Place", "Number", "Color", "Object nature", "Object", "Other")


def question_class(question: str) -> str:
    """The class of a question (ScanQA ``scripts/score.py::qclass1``); nothing for no question."""
    starts = {
        "Where": "Place", "How many": "Number", "What color": "Color", "What is the color": "Color",
        "What shape": "Object nature", "What type": "Object nature", "What kind": "Object nature", "What is": "Object",
    }  # fmt: skip
    return next((name for start, name in starts.items() if start in question), "Other") if question else ""


def _asked(row: Row) -> str:
    if isinstance(question := row.values.get("question"), str):
        return question
    turns = row.values.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    text = first.get("value") if isinstance(first, dict) else None
    return text.replace("<image> ", "").removesuffix(_INSTRUCTION) if isinstance(text, str) else ""


def _tokenised(said: Sequence[str], truths: Sequence[Sequence[str]]) -> CaptionMetrics:
    """Caption metrics after the Penn Treebank tokeniser."""
    tools = JavaTools.find()
    if tools is None:
        return CaptionMetrics.missing()
    try:
        tokens = iter(tools.tokenise([*said, *(text for truth in truths for text in truth)]))
    except ScoreError as error:
        return CaptionMetrics.missing(why=f"not computed: {error}")
    candidates = [next(tokens) for _ in said]
    return CaptionMetrics.of(candidates, [[next(tokens) for _ in truth] for truth in truths], tools)


def _leo(items: Sequence[Item], said: Sequence[str], truths: Sequence[Sequence[str]], given: Any) -> Evaluation:
    cleaned = [clean_answer(answer) for answer in said]
    references = [[clean_answer(text) for text in truth] for truth in truths]
    found = np.array([match(*pair) for pair in zip(cleaned, references, strict=True)]) & given[:, None]
    matches = {"EM": found[:, 0].astype(np.float64), "EM-R": found[:, 1].astype(np.float64)}
    measures = tuple(name for name in MEASURES if name not in ("BLEU-1", "BLEU-2", "BLEU-3"))
    metrics = CaptionMetrics.of(cleaned, references, JavaTools.find(), unit="fraction", measures=measures)
    return _evaluation(items, matches, "fraction", 1.0, metrics, {}, cleaned)


def _evaluation(
    items: Sequence[Item],
    matches: dict[str, Floats],
    unit: str,
    scale: float,
    metrics: CaptionMetrics,
    types: dict[str, Any],
    cleaned: Sequence[str] = (),
) -> Evaluation:
    quantities = []
    for kind, members in {"all": everything(items), **types}.items():
        quantities += [Quantity(kind, name, Mean(values, scale), members, unit) for name, values in matches.items()]
        quantities += metrics.quantities(kind, members)
    values: list[dict[str, Any]] = [
        {
            **({"cleaned": cleaned[place]} if cleaned else {}),
            **{name: int(found[place]) for name, found in matches.items()},
            **metrics.of_item(place),
        }
        for place in range(len(items))
    ]
    return Evaluation(quantities, values)
