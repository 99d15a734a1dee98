"""A score: figures by type with intervals, each with the protocol that made it, and what every question scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from .benchmark import Evaluation, Item, Protocol
from .bootstrap import Bootstrap
from .matching import Coverage


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        type: of the questions it is taken over.
        measure: its name.
        value: in ``unit``; None: not computed, and ``why`` says so.
        low, high: of the 95% percentile interval of the bootstrap; None for fewer than two things to draw, or where
            some draws have no score.
        count: questions.
        unit: ``percent`` or ``fraction``, as the protocol's own script prints it.
        signature: everything that has to be equal for two figures to be comparable.
        why: it is not computed.
    """

    type: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    unit: str
    signature: str
    why: str = ""

    @property
    def shown(self) -> str:
        """The value as a table shows it: percent with two decimals, fractions with four; else why there is none."""
        return self.why if self.value is None else shown_as(self.value, self.unit)

    @property
    def interval(self) -> str:
        """The interval as a table shows it, or a dash."""
        if self.low is None or self.high is None:
            return "-"
        return f"{shown_as(self.low, self.unit)} to {shown_as(self.high, self.unit)}"


@dataclass(frozen=True)
class ItemScore:
    """What one question scored.

    Attributes:
        id, type: of the question.
        values: how its answer was understood, and what it scored.
    """

    id: str
    type: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What a set of answers scores.

    Attributes:
        benchmark, title: its name as typed and as written.
        protocol: whose way of scoring.
        figures: all of them, the ones to quote first.
        items: per question, in the order of the questions.
        coverage: how much of the benchmark this is about.
        bootstrap: how the intervals were drawn.
        notes: what a reader of the figures has to know.
        headline: first line of a report; it says so where questions are missing.
    """

    benchmark: str
    title: str
    protocol: Protocol
    figures: tuple[Figure, ...]
    items: tuple[ItemScore, ...]
    coverage: Coverage
    bootstrap: Bootstrap
    notes: tuple[str, ...]
    headline: str
    #: What :func:`compare` draws from anew.
    evaluation: Evaluation = field(repr=False)
    scored: tuple[Item, ...] = field(repr=False)

    def figure(self, measure: str, type: str = "all") -> Figure:
        """One figure. Raises :class:`KeyError` when there is none of that name."""
        for found in self.figures:
            if (found.measure, found.type) == (measure, type):
                return found
        raise KeyError(f"{measure} of {type}: there are {[(f.measure, f.type) for f in self.figures]}")

    def table(self) -> str:
        """The headline and all figures as plain text."""
        rows = [("type", "measure", "score", "95% interval", "questions")]
        rows += [(f.type, f.measure, f.shown, f.interval, str(f.count)) for f in self.figures]
        lines = aligned(rows)
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join([self.headline, "", *lines, "", *notes, self.protocol_line])

    @property
    def protocol_line(self) -> str:
        """Whose figures these are, and what differs."""
        return f"{self.protocol.name}: {self.protocol.source}. {self.protocol.differs}"

    def per_item(self) -> list[dict[str, Any]]:
        """Plain values for one JSON line per question: what was said, what is right, and what that scored."""
        return [
            {"id": item.id, "type": item.type, "said": _plain(pair.answer), "truth": pair.question.truth, **item.values}
            for item, pair in zip(self.items, self.scored, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those per question."""
        return {
            "benchmark": self.benchmark,
            "headline": self.headline,
            "protocol": asdict(self.protocol),
            "coverage": {**asdict(self.coverage), "complete": self.coverage.complete},
            "bootstrap": {**asdict(self.bootstrap), "level": 0.95},
            "figures": [asdict(figure) for figure in self.figures],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text. There is no NaN in it: what has no finite value is null, with a reason."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def _plain(answer: Any) -> Any:
    return asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else answer


def shown_as(value: float, unit: str, *, signed: bool = False) -> str:
    """A value as tables show it."""
    sign = "+" if signed else ""
    return f"{value:{sign}.2f}" if unit == "percent" else f"{value:{sign}.4f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of equally wide columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
