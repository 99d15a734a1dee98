"""Runs beside each other: curves on common axes, figures in one table, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...analysis.report.blocks import Block, Facts, Finding, Findings, Line, Lines, Prose, Table
from ...analysis.report.page import Section
from ...contracts.printable import one_line
from ..validation import LOSS
from .curves import KINDS, STEPS, thinned
from .reading import Run
from .sections import last_value, share_now, state_of

#: Settings that differ between any two runs and explain nothing.
_NO_NEWS = {"train.output_dir", "env", "data.workers", "train.save_total_limit", "train.report_to", "train.report_rows"}


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, or the path where two folders are called the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def figures(runs: Sequence[Run]) -> Section:
    """The figures of each run in one table, with the scores of its answers."""
    rows = []
    for name, run in zip(names_of(runs), runs, strict=True):
        right = _right(run)
        rows.append(
            (
                name,
                f"{run.logged.step:,}" + (f" of {run.steps:,}" if run.steps else ""),
                _number(last_value(run, "loss")),
                _number(last_value(run, LOSS)),
                f"{run.best.loss:.4f} ({run.best.checkpoint.name})" if run.best else "none",
                _number(share_now(run)),
                _number(last_value(run, "branch/a")),
                "none" if right is None else f"{right[0]} of {right[1]}",
            )
        )
    columns = [
        "run", "steps", "training loss", "validation loss", "lowest at a checkpoint", "share of the prior", "a",
        "answered exactly",
    ]  # fmt: skip
    mind = (
        "One run a side cannot show an effect, because seeds differ too. Compare several seeds, on rows that "
        "none was trained on, "
        "with intervals."
    )
    return Section("Figures", [Table(columns, rows), Prose([mind], small=True)])


def states(runs: Sequence[Run]) -> Findings:
    """How far each run has come."""
    found = [(name, state_of(run)) for name, run in zip(names_of(runs), runs, strict=True)]
    return Findings([Finding(f"{name}: {state.text}", state.tone, state.tag) for name, state in found])


def curves(runs: Sequence[Run]) -> Section:
    """Losses and shares, a line for each run."""
    charts: list[Block] = [
        _chart(runs, "Training loss", ["loss"]),
        _chart(runs, "Validation loss", [LOSS]),
        _chart(runs, "Share of the prior", [f"share/{kind}/generative" for kind in KINDS]),
        _chart(runs, "Learned scale a", ["branch/a"]),
    ]
    return Section("Curves", [chart for chart in charts if not (isinstance(chart, Lines) and chart.is_empty)])


def differences(runs: Sequence[Run]) -> Section:
    """The settings in which the runs differ."""
    flat = [dict(_flat(run.settings)) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    different = [
        key
        for key in keys
        if not any(key == no or key.startswith(f"{no}.") for no in _NO_NEWS)
        and any(settings.get(key) != flat[0].get(key) for settings in flat)
    ]
    if not different:
        return Section("Settings that differ", [Facts([("none", "all settings that matter are the same")])])
    rows = [(key, *(str(settings.get(key, "")) for settings in flat)) for key in different]
    return Section("Settings that differ", [Table(["setting", *names_of(runs)], rows, numeric=False)])


def answers(runs: Sequence[Run]) -> Section | None:
    """What each run answered to the rows that all of them looked at."""
    asked = [{str(row.get("name")): number for number, row in enumerate(run.rows)} for run in runs]
    common = [name for name in asked[0] if all(name in rows for rows in asked)] if asked else []
    if not common:
        return None
    rows: list[Sequence[str | tuple[str, str]]] = []
    for name in common:
        row = runs[0].rows[asked[0][name]]
        said = [_last_answer(run, places[name]) for run, places in zip(runs, asked, strict=True)]
        heading = (name, str(row.get("question", "")))
        rows.append((heading, str(row.get("expected", "")), one_line(str(row.get("base", ""))), *said))
    table = Table(["row", "expected", "host alone", *names_of(runs)], rows, numeric=False)
    return Section("Answers", [table], "Rows that all of these runs answered, after their last checkpoint.")


def _chart(runs: Sequence[Run], title: str, names: Sequence[str]) -> Lines:
    lines: list[Line] = []
    for label, run in zip(names_of(runs), runs, strict=True):
        found = [(name, run.logged.points(name)) for name in names]
        found = [(name, points) for name, points in found if points]
        for name, points in found:
            more = f", {name.split('/')[1]}" if len(found) > 1 else ""
            lines.append(Line(f"{label}{more}", thinned(points), dashed=len(lines) >= 6))
    return Lines(title, lines, STEPS)


def _right(run: Run) -> tuple[int, int] | None:
    """How many rows of the report were answered exactly, but for case, space and a final full stop."""
    if not run.looks or not run.rows:
        return None
    said = [_last_answer(run, number) for number in range(len(run.rows))]
    hits = [_plain(a) == _plain(str(row.get("expected", ""))) for a, row in zip(said, run.rows, strict=True)]
    return sum(hits), len(hits)


def _last_answer(run: Run, number: int) -> str:
    rows = run.looks[-1][1] if run.looks else []
    row = rows[number] if number < len(rows) else {}
    return one_line(str(row.get("patched", row.get("trained", ""))))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, where)
        else:
            yield where, value
