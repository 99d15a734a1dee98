"""Two sets of answers to the same questions: paired intervals of the difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .benchmark import Quantity
from .bootstrap import Bools, Bootstrap, Floats, Ints, interval
from .errors import ScoreError
from .estimators import Estimator
from .results import Score, aligned, shown_as
from .scoring import groups_of, resampled


@dataclass(frozen=True)
class Difference:
    """One measure of a first set of answers minus that of a second.

    Attributes:
        type, measure: of the figures.
        first, second: their values, over the questions that both answer.
        difference: first minus second.
        low, high: of its 95% percentile interval, the same questions being drawn for both.
        count: questions.
        unit: ``percent`` or ``fraction``.
        why: there is no difference to speak of.
    """

    type: str
    measure: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    count: int
    unit: str
    why: str = ""

    @property
    def verdict(self) -> str:
        """In words, and no more than the interval allows."""
        if self.difference is None:
            return self.why
        if self.low is None or self.high is None:
            return "no interval, so nothing can be said"
        if self.low == self.high == 0:
            return "no difference: the same in every resample"
        if self.low <= 0 <= self.high:
            return "no difference shown: the interval contains 0"
        return f"{'higher' if self.difference > 0 else 'lower'}: the interval does not contain 0"

    @property
    def shown(self) -> str:
        """The difference as a table shows it, or a dash."""
        return "-" if self.difference is None else shown_as(self.difference, self.unit, signed=True)

    @property
    def interval(self) -> str:
        """As a table shows it, or a dash."""
        if self.low is None or self.high is None:
            return "-"
        return " to ".join(shown_as(end, self.unit, signed=True) for end in (self.low, self.high))


@dataclass(frozen=True)
class Comparison:
    """All differences of two scores.

    Attributes:
        headline: first line of a report.
        differences: by type and measure.
        notes: what a reader of them has to know.
    """

    headline: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """As plain text."""
        rows = [["type", "measure", "first", "second", "difference", "95% interval", "verdict"]]
        for found in self.differences:
            values = [_shown(value, found.unit) for value in (found.first, found.second)]
            rows.append([found.type, found.measure, *values, found.shown, found.interval, found.verdict])
        return "\n".join([self.headline, "", *aligned(rows), "", *(f"Note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        differences = [{**asdict(found), "verdict": found.verdict} for found in self.differences]
        return {"headline": self.headline, "differences": differences, "notes": list(self.notes)}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def compare(first: Score, second: Score, *, common: bool = False) -> Comparison:
    """Compare two scores of one benchmark, by one protocol.

    Args:
        first, second: their difference is first minus second.
        common: where they are about different questions, compare over those that both are about.

    Raises:
        ScoreError: two benchmarks, two protocols, or two sets of questions.
    """
    if (first.benchmark, first.protocol.name) != (second.benchmark, second.protocol.name):
        raise ScoreError(
            f"{first.title} as {first.protocol.name} and {second.title} as {second.protocol.name} have different "
            "figures; score both with one protocol first."
        )
    left, right = ({item.question.id: place for place, item in enumerate(s.scored)} for s in (first, second))
    shared = [name for name in left if name in right]
    alone = len(left) + len(right) - 2 * len(shared)
    if not shared or (alone and not common):
        raise ScoreError(
            f"The two are not about the same questions: {len(shared):,} are in both, {len(left) - len(shared):,} only "
            f"in the first and {len(right) - len(shared):,} only in the second."
            + (" Pass --leave-out missing to compare over those in both." if shared else "")
        )
    places = np.array([left[name] for name in shared]), np.array([right[name] for name in shared])
    _same_truths(first, second, places)
    bootstrap = first.bootstrap
    differences = _differences(first, second, places, bootstrap)
    over = f"{len(shared):,} questions" + (f", those in both; {alone:,} are in one alone" if alone else "")
    notes = [*(f"first: {note}" for note in first.notes), *(f"second: {note}" for note in second.notes)]
    several = sum(found.low is not None for found in differences)
    if several > 1:
        notes.append(f"{several} differences are tested, and the intervals are not corrected for that number.")
    headline = f"{'PART OF THE QUESTIONS: ' if alone else ''}first minus second over {over}, as {first.protocol.name}"
    return Comparison(headline, tuple(differences), tuple(notes))


@dataclass(frozen=True)
class _Paired(Estimator):
    """The difference of two estimators over the questions in both, each of which has its own order of them."""

    first: Estimator
    second: Estimator
    places: tuple[Ints, Ints]
    sizes: tuple[int, int]

    def estimate(self, counts: Floats) -> Floats:
        """See :class:`Estimator`."""
        one, other = self.each(counts)
        return one - other

    def over(self, members: Bools) -> Estimator:
        """See :class:`Estimator`."""
        spread = [one > 0 for one in self._spread(members[None].astype(np.float64))]
        first, second = self.first.over(spread[0][0]), self.second.over(spread[1][0])
        return replace(self, first=first, second=second)

    def each(self, counts: Floats) -> tuple[Floats, Floats]:
        """Both scores."""
        one, other = self._spread(counts)
        return self.first.estimate(one), self.second.estimate(other)

    def _spread(self, counts: Floats) -> list[Floats]:
        """The counts in the order of the first's questions and of the second's."""
        spread = []
        for places, size in zip(self.places, self.sizes, strict=True):
            own = np.zeros((len(counts), size))
            own[:, places] = counts
            spread.append(own)
        return spread


def _differences(first: Score, second: Score, places: tuple[Ints, Ints], bootstrap: Bootstrap) -> list[Difference]:
    items = [first.scored[place] for place in places[0]]
    groups = groups_of(items, bootstrap)
    others = {(quantity.type, quantity.measure): quantity for quantity in second.evaluation.quantities}
    found = []
    for quantity in first.evaluation.quantities:
        other = others.get((quantity.type, quantity.measure))
        if other is None:
            continue
        members = quantity.members[places[0]] & other.members[places[1]]
        if not members.any():
            continue
        if quantity.estimator is None or other.estimator is None:
            why = quantity.why or other.why
            found.append(_nothing(quantity, members, why))
            continue
        paired = _Paired(quantity.estimator, other.estimator, places, (len(first.scored), len(second.scored)))
        strata = None if quantity.strata is None else quantity.strata[places[0]]
        found.append(
            _difference(replace(quantity, estimator=paired, members=members, strata=strata), bootstrap, groups)
        )
    return found


def _difference(quantity: Quantity, bootstrap: Bootstrap, groups: Ints | None) -> Difference:
    assert isinstance(quantity.estimator, _Paired)
    one, other = (float(v[0]) for v in quantity.estimator.each(quantity.members[None].astype(np.float64)))
    if not np.isfinite([one, other]).all():
        return _nothing(quantity, quantity.members, "no verdict: a score has no finite value on these questions")
    low, high = interval(resampled(quantity, bootstrap, groups, f"{quantity.type}/{quantity.measure}"))
    count = int(quantity.members.sum())
    return Difference(quantity.type, quantity.measure, one, other, one - other, low, high, count, quantity.unit)


def _nothing(quantity: Quantity, members: Bools, why: str) -> Difference:
    count = int(members.sum())
    return Difference(quantity.type, quantity.measure, None, None, None, None, None, count, quantity.unit, why)


def _same_truths(first: Score, second: Score, places: tuple[Ints, Ints]) -> None:
    other = [
        one.question.id
        for one, two in zip(_at(first, places[0]), _at(second, places[1]), strict=True)
        if (one.question.truth, one.question.type) != (two.question.truth, two.question.type)
    ]
    if other:
        raise ScoreError(
            f"{len(other):,} questions have another ground truth or type in the second than in the first (first: "
            f"{other[0]}): the two were scored against different versions of the benchmark's file."
        )


def _at(score: Score, places: Ints) -> Sequence[Any]:
    return [score.scored[place] for place in places]


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else shown_as(value, unit)
