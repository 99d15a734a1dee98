"""What was run, as JSON, and how each arm learned, as a picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from vega3d_plugin.analysis.charts import Series, line_chart, save
from vega3d_plugin.analysis.intervals import Interval
from vega3d_plugin.storage.versions import package_version
from vega3d_plugin.storage.writing import write_json

from .arms import ARMS, FIRST, REST
from .judging import Answers

#: Points of a curve: each is the mean loss of as many steps.
POINTS = 10
#: Points at the beginning that are left out: there the form of an answer is learned, and the loss is ten times larger.
FORM = 3
STRONG = ("host", "trained")
_PACKAGES = ("torch", "transformers", "peft")


def write(answers: Answers, out: Path, name: str) -> None:
    """Write ``language_NAME.json`` and ``language_NAME.png``.

    Args:
        answers: of every arm and seed.
        out: folder for both.
        name: of the host.
    """
    versions = {package: package_version(package) for package in _PACKAGES}
    kinds = answers.kinds.tolist()
    rooms = answers.rooms.tolist()
    write_json(
        out / f"language_{name}.json",
        {"host": name, "versions": versions, "kinds": kinds, "rooms": rooms, "arms": answers.results},
    )
    steps = {len(result["losses"]) for results in answers.results.values() for result in results if "losses" in result}
    (length,) = steps
    edges = np.linspace(0, length, POINTS + 1).round().astype(int)[FORM:]
    series = [
        Series(ARMS[arm].meaning, _means([result["losses"] for result in results], edges), strong=arm in STRONG)
        for arm, results in answers.results.items()
        if arm in FIRST + REST
    ]
    title = f"Loss from step {edges[0]} on, {name}: means of {length // POINTS} steps, bars from lowest to highest seed"
    save(line_chart(title, [str(edge) for edge in edges[1:]], series, "step"), out / f"language_{name}.png")


def _means(losses: list[list[float]], edges: np.ndarray) -> list[Interval]:
    """Of each part of the training, the mean over seeds; the lowest and the highest seed in place of an interval."""
    parts = np.array([[np.mean(run[a:b]) for a, b in pairwise(edges)] for run in losses])
    several = len(losses) > 1
    return [
        Interval(float(part.mean()), float(part.min()), float(part.max())) if several else Interval(float(part.mean()))
        for part in parts.T
    ]
