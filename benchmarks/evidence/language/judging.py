"""Accuracies of the arms by kind of question, and their differences, with intervals over rooms and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arms import ARMS, Experiment

DRAWS = 2000
#: Differences that the experiment is about: the arm, and the one it is compared with.
PAIRS = (("trained", "host"), ("trained", "twin"), ("trained", "shuffled"), ("trained", "zeroed"), ("twin", "host"))
PAIRS += (("host-fast", "host"), ("trained", "host-fast"))

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def verdict(self) -> str:
        """In words, for a difference."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


class Answers:
    """Right answers of every arm and seed, drawn again by rooms and by seeds.

    Args:
        experiment: of which the rows are.
        seeds: that were run.
    """

    def __init__(self, experiment: Experiment, seeds: Sequence[int]) -> None:
        self.kinds = experiment.test.kinds
        self.rooms = np.unique(experiment.test.room, return_inverse=True)[1]
        read = {arm: [experiment.run(arm, seed, only_read=True) for seed in seeds] for arm in ARMS}
        #: Arms that every seed has been run of.
        self.results: dict[str, list[dict[str, Any]]] = {
            arm: [result for result in results if result is not None] for arm, results in read.items() if all(results)
        }
        rng = np.random.default_rng(0)
        count = int(self.rooms.max()) + 1
        self.by_room = _counts(rng, count)
        self.by_seed = _counts(rng, len(seeds))

    def right(self, arm: str) -> Table:
        """``[seeds, rows]``."""
        return np.array([[digit == "1" for digit in result["right"]] for result in self.results[arm]], np.float64)

    def accuracy(self, arm: str, kind: str | None = None) -> Estimate:
        """Of one kind, or of all."""
        return self._estimate(self.right(arm), kind)

    def difference(self, arm: str, other: str, kind: str | None = None) -> Estimate:
        """Of two arms on the same rows and seeds."""
        return self._estimate(self.right(arm) - self.right(other), kind)

    def _estimate(self, values: Table, kind: str | None) -> Estimate:
        chosen = np.ones(len(self.kinds), bool) if kind is None else self.kinds == kind
        rooms, count = self.rooms[chosen], self.by_room.shape[1]
        sums = np.array([np.bincount(rooms, row[chosen], count) for row in values])
        sizes = np.bincount(rooms, minlength=count).astype(np.float64)
        drawn = np.einsum("ds,sr,dr->d", self.by_seed, sums, self.by_room)
        drawn /= self.by_seed.sum(axis=1) * (self.by_room @ sizes)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Estimate(float(values[:, chosen].mean()), float(low), float(high))


def _counts(rng: np.random.Generator, units: int) -> Table:
    """``[DRAWS, units]``: how often each unit comes up in as many draws as there are units."""
    return rng.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float64)


def tables(answers: Answers) -> Iterator[str]:
    """In Markdown, for RESULTS.md."""
    shown = [None, *dict.fromkeys(answers.kinds.tolist())]
    head = ["all" if kind is None else kind for kind in shown]
    yield "| arm | " + " | ".join(head) + " | trainable | a | share | step, ms |"
    yield "| --- |" + " --- |" * (len(head) + 4)
    for arm, meaning in ARMS.items():
        if arm not in answers.results:
            continue
        results = answers.results[arm]
        cells = [str(answers.accuracy(arm, kind)) for kind in shown]
        size = f"{results[0]['trainable']:,}" if "trainable" in results[0] else ""
        scale = f"{np.mean([result['a'] for result in results]):.2f}" if "a" in results[0] else ""
        share = f"{np.mean([result['share'] for result in results]):.3f}" if "share" in results[0] else ""
        cost = f"{np.median([result['ms'] for result in results]):.0f}" if "ms" in results[0] else ""
        yield f"| {meaning} | " + " | ".join(cells) + f" | {size} | {scale} | {share} | {cost} |"
    yield ""
    yield "| difference of accuracy | " + " | ".join(head) + " |"
    yield "| --- |" + " --- |" * len(head)
    for arm, other in PAIRS:
        if not {arm, other} <= {*answers.results}:
            continue
        estimates = [answers.difference(arm, other, kind) for kind in shown]
        cells = [f"{each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f}): {each.verdict}" for each in estimates]
        yield f"| {arm} - {other} | " + " | ".join(cells) + " |"
