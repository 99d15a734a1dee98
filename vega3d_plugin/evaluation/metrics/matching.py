"""Answers brought together with questions: what does not fit is counted, named, and refused or left out on request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...contracts.errors import UnknownNameError
from .benchmark import Benchmark, Item, Protocol, Question
from .errors import RowProblem, ScoreError
from .rows import Row

#: What can be left out on request, and what a message says of it.
KINDS = {
    "missing": "{} without an answer",
    "unknown": "{} to questions that the references do not have",
    "duplicate": "{} to a question that has one already (the last one of a question would count)",
    "unusable": "{} that cannot be used",
    "mismatch": "{} whose own ground truth or type is another than that of the references: another version of the "
    "benchmark's file",
}
_THINGS = {"missing": "question", "unknown": "answer", "duplicate": "answer", "unusable": "row", "mismatch": "row"}
#: Examples of each kind in a message.
SHOWN = 3


@dataclass(frozen=True)
class Coverage:
    """How much of a benchmark a score is about.

    Attributes:
        scored: questions that count.
        asked: questions of the references; None without references, when nobody knows whether all are there.
        public: questions of the public split; None where that is not known here.
        split: its name.
        unanswered: of the scored ones, those that count as wrong for want of an answer.
        left_out: by kind, how many and the first few.
    """

    scored: int
    asked: int | None
    public: int | None
    split: str
    unanswered: int = 0
    left_out: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every question of the references counts."""
        return self.scored == self.asked and not self.unanswered

    def __str__(self) -> str:
        """In one line, beginning with a warning where the score is over less than all questions."""
        split = f"; the public {self.split} split has {self.public:,}" if self.public else ""
        short = ", ".join(f"{count:,} {kind}" for kind, (count, _) in self.left_out.items())
        if self.asked is None:
            begin = f"INCOMPLETE: left out {short}; " if short else ""
            return f"{begin}{_count(self.scored, 'question')}, those of the predictions (no references){split}"
        if self.scored < self.asked:
            return f"INCOMPLETE: {self.scored:,} of {_count(self.asked, 'question')} ({short})"
        empty = f", {self.unanswered:,} of them unanswered and counted as wrong" if self.unanswered else ""
        other = split if self.public != self.asked else ""
        return f"all {_count(self.asked, 'question')}{empty}{other}"


@dataclass
class _Problems:
    """What was found, by kind."""

    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, kind: str, message: str) -> None:
        self.found[kind].append(message)

    def refuse(self, leave_out: Collection[str]) -> None:
        """Raise an error about every kind that may not be left out."""
        refused = {kind: told for kind, told in self.found.items() if told and kind not in leave_out}
        if not refused:
            return
        lines = []
        for kind, told in refused.items():
            more = f"\n    and {len(told) - SHOWN:,} more" if len(told) > SHOWN else ""
            lines.append(f"  {_described(kind, len(told))}:\n    " + "\n    ".join(told[:SHOWN]) + more)
        request = " ".join(f"--leave-out {kind}" for kind in refused)
        wrong = (
            " A question without an answer can also count as wrong: --count-missing." if "missing" in refused else ""
        )
        raise ScoreError(
            "These answers cannot be scored as they are:\n"
            + "\n".join(lines)
            + f"\nCorrect them, or leave them out with "
            f"{request} (in Python: leave_out={sorted(refused)}); the score then says so.{wrong}"
        )

    def counted(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        return {kind: (len(told), tuple(told[:SHOWN])) for kind, told in self.found.items() if told}


def bring_together(
    benchmark: Benchmark,
    protocol: Protocol,
    predictions: tuple[list[Row], list[str]],
    references: tuple[list[Row], list[str]] | None,
    *,
    leave_out: Collection[str] = (),
    count_missing: bool = False,
) -> tuple[list[Item], Coverage]:
    """Items in the order of the questions, and how much of the benchmark they are.

    Args:
        benchmark, protocol: what is scored, and how.
        predictions: rows, and messages about what could not be read.
        references: the same; None: each row of the predictions holds its own ground truth.
        leave_out: kinds of :data:`KINDS` that do not stop the scoring.
        count_missing: score a question without an answer as wrong.

    Raises:
        ScoreError: something does not fit that may not be left out, or nothing remains.
    """
    for kind in leave_out:
        if kind not in KINDS:
            raise UnknownNameError("kind of row to leave out", kind, KINDS)
    problems = _Problems()
    for message in predictions[1]:
        problems.add("unusable", message)
    questions = None
    if references is not None:
        questions = _questions(benchmark, protocol, references)
    answers, own = _answers(benchmark, protocol, predictions[0], questions, problems)
    asked = list((questions or own).values())
    items = [Item(question, answers[question.id]) for question in asked if question.id in answers]
    unanswered = [question for question in asked if question.id not in answers]
    if count_missing:
        items = [Item(question, answers.get(question.id)) for question in asked]
    else:
        for question in unanswered:
            problems.add("missing", f"{question.id} ({question.where})")
    problems.refuse(leave_out)
    if not any(item.answer is not None for item in items):
        raise ScoreError(f"No question of {benchmark.title} has an answer that can be scored.{_excuse(problems)}")
    total = None if questions is None else len(questions)
    count = len(unanswered) if count_missing else 0
    return items, Coverage(len(items), total, benchmark.size, benchmark.split, count, problems.counted())


def merged(files: Sequence[tuple[list[Row], list[str]]], name: Any) -> tuple[list[Row], list[str]]:
    """Rows of several files of references, where one file completes the rows of another (SQA3D has two).

    Args:
        files: rows, and messages about what could not be read.
        name: gives the id of a row.

    Raises:
        ScoreError: two files say different things of a question.
    """
    if len(files) == 1:
        return files[0]
    found: dict[str, Row] = {}
    bad = [message for _, messages in files for message in messages]
    for place, (rows, _) in enumerate(files):
        for row in rows:
            try:
                key = name(row)
            except RowProblem as problem:
                bad.append(str(problem))
                continue
            if place == 0 and key in found:
                raise ScoreError(f"{row.where}: question {key} stands in this file twice (before: {found[key].where}).")
            found[key] = _joined(found[key], row) if key in found else row
    return list(found.values()), bad


def _joined(first: Row, second: Row) -> Row:
    for key, value in second.values.items():
        if first.values.get(key, value) != value:
            raise ScoreError(f"{second.where}: key {key!r} is not as in {first.where}. The files are of two versions.")
    return Row({**first.values, **second.values}, first.where, first.reference)


def _questions(
    benchmark: Benchmark, protocol: Protocol, references: tuple[list[Row], list[str]]
) -> dict[str, Question]:
    """The references' questions by id; a file of the benchmark has to be whole."""
    questions, bad = benchmark.questions(references[0], protocol)
    bad = [*references[1], *bad]
    if bad:
        raise ScoreError(
            f"{len(bad):,} rows of the references cannot be used as {benchmark.title}, protocol {protocol.name}:\n  "
            + "\n  ".join(bad[:SHOWN])
            + "\nIs it this benchmark's file, whole, and the one that the protocol takes?"
        )
    found: dict[str, Question] = {}
    for question in questions:
        if question.id in found:
            raise ScoreError(
                f"{question.where}: question {question.id} stands in the references twice (before: "
                f"{found[question.id].where})."
            )
        found[question.id] = question
    return found


def _answers(
    benchmark: Benchmark,
    protocol: Protocol,
    rows: Iterable[Row],
    questions: dict[str, Question] | None,
    problems: _Problems,
) -> tuple[dict[str, Any], dict[str, Question]]:
    """Answers by the id of their question, and, without references, the rows' own questions."""
    answers: dict[str, Any] = {}
    own: dict[str, Question] = {}
    places: dict[str, str] = {}
    for row in rows:
        try:
            name = benchmark.id(row)
            if questions is None:
                own_question = benchmark.question(row, protocol)
            elif name not in questions:
                name = next((other for other in benchmark.aliases(name) if other in questions), name)
            answer = benchmark.answer(row, protocol)
        except RowProblem as problem:
            problems.add("unusable", str(problem))
            continue
        if questions is None:
            own[name] = own_question
        elif name not in questions:
            problems.add("unknown", f"{benchmark.id(row)} ({row.where})")
            continue
        elif benchmark.contradicts(questions[name], row, protocol):
            problems.add("mismatch", f"{name} ({row.where}, against {questions[name].where})")
            continue
        if name in answers:
            problems.add("duplicate", f"{name} ({row.where}, before: {places[name]})")
        answers[name], places[name] = answer, row.where
    return answers, own


def _described(kind: str, count: int) -> str:
    return KINDS[kind].format(_count(count, _THINGS[kind]))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def _excuse(problems: _Problems) -> str:
    found = [f"{_described(kind, len(told))} (first: {told[0]})" for kind, told in problems.found.items() if told]
    return f" There are {'; '.join(found)}." if found else ""
