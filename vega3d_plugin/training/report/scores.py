"""Scores that lie in a run's folder: what ``vega3d ablate --out RUN/NAME.json`` has written there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...analysis.report.blocks import Table
from ...analysis.report.page import Section
from .reading import Run

#: Files larger than this are no scores, bytes.
_LARGEST = 200_000_000
_MEASURES = {"exact": "exact match", "nll": "NLL per answer", "token_nll": "NLL per token"}


def found_scores(run: Run) -> list[tuple[str, Mapping[str, Mapping[str, Any]]]]:
    """Names of files, and mean scores by variant and measure. Files of other kinds are passed by."""
    found: list[tuple[str, Mapping[str, Mapping[str, Any]]]] = []
    for path in sorted(run.folder.glob("*.json")):
        try:
            values = json.loads(path.read_bytes()) if path.stat().st_size < _LARGEST else None
        except (OSError, ValueError, RecursionError):
            continue
        means = values.get("means") if isinstance(values, dict) and "differences" in values else None
        if isinstance(means, dict) and all(isinstance(scores, dict) for scores in means.values()):
            found.append((path.name, means))
    return found


def scores(names: Sequence[str], runs: Sequence[Run]) -> Section | None:
    """The scores of some runs beside each other; None where there are none."""
    rows = [
        (f"{name}: {file}", variant, *(_shown(measure, means[variant].get(measure)) for measure in _MEASURES))
        for name, run in zip(names, runs, strict=True)
        for file, means in found_scores(run)
        for variant in means
    ]
    if not rows:
        return None
    lead = (
        "Means, as `vega3d ablate` wrote them into the run's folder. The command's own output has the intervals of the "
        "differences."
    )
    return Section("Scores", [Table(["run and file", "variant", *_MEASURES.values()], rows)], lead)


def _shown(measure: str, value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "none"
    return f"{value:.1%}" if measure == "exact" else f"{value:.4f}"
