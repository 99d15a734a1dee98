"""Files of answers to be compared: each line has to say what was answered, and all sides the same of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contracts.errors import BadRowsError
from ...contracts.printable import brief
from ..answering.parts import AnswersError
from ..metrics.errors import RowProblem
from ..metrics.reading import read_rows
from ..metrics.rows import Row
from .measures import expected_of, type_of

Line = Mapping[str, Any]
#: The answer, and what is right, under whatever names their file has for them.
SAID, EXPECTED = "prediction", "answers"
#: Lines that a message names.
_SHOWN = 3


def read_answers(path: Path) -> dict[str, Line]:
    """The lines of a file of answers by id, each with its answer under ``prediction``.

    Keys are those of ``vega3d score``: what the released scripts and lmms-eval write is read too.

    Raises:
        ScoreError, AnswersError: no such file, or lines that are no answers; the message counts and names them.
    """
    rows, bad = read_rows(path)
    found: dict[str, Line] = {}
    for row in rows:
        try:
            key, line = row.id(), _line(row)
        except RowProblem as problem:
            bad.append(str(problem))
            continue
        if key in found:
            raise AnswersError(f"{row.where}: question {key} is answered twice.")
        found[key] = line
    if bad:
        listed = "\n  ".join(bad[:_SHOWN])
        raise AnswersError(
            f"{path}: {len(bad):,} of {len(found) + len(bad):,} lines cannot be used as answers:\n  {listed}\n"
            "Correct or remove them; a question that one side has not answered is left out and counted."
        )
    return found


def _line(row: Row) -> Line:
    line = {**row.values, "sample_id": row.id(), SAID: row.text(*row.said())}
    if line.get("nll") is not None:
        line["nll"] = row.number("nll", line["nll"])
    return line


def same_questions(sides: Sequence[tuple[str, dict[str, Line]]], common: Sequence[str]) -> list[str]:
    """Check that all sides expect the same answers, and have those that do not say any take them from those that do.

    Args:
        sides: a name for messages, and lines by id, which are changed.
        common: ids to be compared.

    Returns:
        What is to be told: questions without an expected answer, and those of another type or text on some side.

    Raises:
        BadRowsError: a question has different expected answers, or none of them has any and none a likelihood.
    """
    other, without = [], 0
    for key in common:
        known = [(name, expected) for name, lines in sides if (expected := expected_of(lines[key]))]
        name, expected = known[0] if known else ("", [])
        without += not known
        other += [
            f"{key}: {brief(expected)} in {name}, {brief(theirs)} in {their_name}"
            for their_name, theirs in known
            if set(theirs) != set(expected)
        ][:1]
        for _, lines in sides:
            if expected and not expected_of(lines[key]):
                lines[key] = {**lines[key], EXPECTED: expected}
    if other:
        listed = "\n  ".join(other[:_SHOWN])
        raise BadRowsError(
            f"{len(other):,} of {len(common):,} questions do not have the same expected answer on all sides:\n  "
            f"{listed}\nThese are answers to different questions, or to another version of the data. Answer the same "
            "rows on all sides."
        )
    if without == len(common) and not any("nll" in lines[key] for _, lines in sides for key in common):
        raise BadRowsError(
            "No side says what the right answers are (ground_truth, gt_response or answers), so there is nothing to "
            "compare. `vega3d score BENCHMARK A --references FILE --compare B` takes them from a benchmark's file."
        )
    told = [f"{without:,} questions have no expected answer; their answers are not judged."] if without else []
    return told + _described_otherwise(sides, common)


def _described_otherwise(sides: Sequence[tuple[str, Mapping[str, Line]]], common: Sequence[str]) -> list[str]:
    """Questions that another side gives another type or text: ids may be equal by chance."""
    notes = []
    first_name, first = sides[0]
    for what, of in (("type", type_of), ("text", _text)):
        for name, lines in sides[1:]:
            pairs = ((key, of(first[key]), of(lines[key])) for key in common)
            differ = [key for key, one, two in pairs if one is not None and two is not None and one != two]
            if differ:
                notes.append(
                    f"{len(differ):,} questions have another {what} in {name} than in {first_name} (first: "
                    f"{differ[0]}): are these the same questions?"
                )
    return notes


def _text(line: Line) -> Any:
    """What was asked, where a line says it."""
    return next((line[key] for key in ("conversations", "messages", "question") if line.get(key)), None)
