"""Accuracies of the arms by kind of question, and their differences, with intervals over rooms and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vega3d_plugin.evaluation.verdicts import Estimate, gain, share

from .arms import ARMS, Experiment

#: Differences that the experiment is about: the arm, and the one it is compared with.
PAIRS = (("trained", "host"), ("trained", "twin"), ("trained", "shuffled"), ("trained", "zeroed"), ("twin", "host"))
PAIRS += (("host-fast", "host"), ("trained", "host-fast"))
PAIRS += (("host-tower", "host"), ("trained-tower", "host-tower"), ("host-more", "host"), ("trained-more", "host-more"))

Table = NDArray[np.float64]


class Answers:
    """Right answers of every arm and seed; intervals are over rooms and seeds.

    Args:
        experiment: of which the rows are.
        seeds: that were run.
    """

    def __init__(self, experiment: Experiment, seeds: Sequence[int]) -> None:
        self.kinds = experiment.host.test.kinds
        self.rooms = experiment.host.test.room
        read = {arm: [experiment.run(arm, seed, only_read=True) for seed in seeds] for arm in ARMS}
        #: What was run of each arm, from the first seed on.
        self.results: dict[str, list[dict[str, Any]]] = {}
        for arm, results in read.items():
            if known := [one for one in takewhile(lambda one: one is not None, results) if one is not None]:
                self.results[arm] = known

    def right(self, arm: str) -> Table:
        """``[seeds, rows]``."""
        return np.array([[digit == "1" for digit in result["right"]] for result in self.results[arm]], np.float64)

    def accuracy(self, arm: str, kind: str | None = None) -> Estimate:
        """Of one kind, or of all."""
        chosen = self._chosen(kind)
        return share(self.right(arm)[:, chosen], self.rooms[chosen])

    def difference(self, arm: str, other: str, kind: str | None = None) -> Estimate:
        """Of two arms on the same rows and on the seeds that both were run with."""
        chosen = self._chosen(kind)
        seeds = min(len(self.results[arm]), len(self.results[other]))
        one, two = (self.right(each)[:seeds, chosen] for each in (arm, other))
        return gain(one, two, self.rooms[chosen])

    def _chosen(self, kind: str | None) -> NDArray[np.bool_]:
        return np.ones(len(self.kinds), bool) if kind is None else self.kinds == kind


def tables(answers: Answers) -> Iterator[str]:
    """In Markdown, for RESULTS.md."""
    shown = [None, *dict.fromkeys(answers.kinds.tolist())]
    head = ["all" if kind is None else kind for kind in shown]
    yield "| arm | seeds | " + " | ".join(head) + " | right, trained on | trainable | a | share | step, ms |"
    yield "| --- |" + " --- |" * (len(head) + 6)
    for arm, what in ARMS.items():
        if arm not in answers.results:
            continue
        results = answers.results[arm]
        cells = [str(answers.accuracy(arm, kind)) for kind in shown]
        own = f"{np.mean([result['learnt'] for result in results]):.3f}" if all("learnt" in r for r in results) else ""
        size = f"{results[0]['trainable']:,}" if "trainable" in results[0] else ""
        scale = f"{np.mean([result['a'] for result in results]):.2f}" if "a" in results[0] else ""
        share = f"{np.mean([result['share'] for result in results]):.3f}" if "share" in results[0] else ""
        cost = f"{np.median([result['ms'] for result in results]):.0f}" if "ms" in results[0] else ""
        yield f"| {what.meaning} | {len(results)} | " + " | ".join([*cells, own, size, scale, share, cost]) + " |"
    yield ""
    yield "| difference of accuracy | " + " | ".join(head) + " |"
    yield "| --- |" + " --- |" * len(head)
    for arm, other in PAIRS:
        if not {arm, other} <= {*answers.results}:
            continue
        estimates = [answers.difference(arm, other, kind) for kind in shown]
        cells = [f"{each.points}: {each.verdict(arm).partition(':')[0]}" for each in estimates]
        yield f"| {arm} - {other} | " + " | ".join(cells) + " |"
