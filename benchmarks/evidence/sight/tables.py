"""Tables, figures and a picture of what was judged; every figure with its twins, every difference with its interval."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from vega3d_plugin.analysis.charts import DotRow, dot_chart, save
from vega3d_plugin.analysis.intervals import Interval, difference_interval, mean_interval
from vega3d_plugin.analysis.readouts.judging import HIGHER
from vega3d_plugin.storage.writing import write_text

from .judging import CONTROLS, FIGURES, READ, Found, read
from .networks import CANDIDATES

#: Fewer units have no verdict.
FEWEST = 6
HEADLINE = FIGURES[0]
SETS = ("motorcycle", "aloe", "graf", "rooms", "Blender", "LIBERO")
Results = dict[tuple[str, str], Found]


def write(folder: Path, out: Path) -> Iterator[str]:
    """Lines of Markdown; writes ``sight.json`` and ``sight.png`` first.

    Args:
        folder: of the results.
        out: for both files.
    """
    seen, read_out = read(folder, "correspondence"), read(folder, "readout")
    if not seen:
        raise SystemExit(f"{folder} holds no results. Run `sight_experiment.py run {folder}` first.")
    # A line for each candidate on a set: indented it would be several times as large.
    parts = {"correspondence": seen, "readout": read_out}
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, each.values())) + "\n]" for name, each in parts.items()]
    write_text(out / "sight.json", "{" + ",\n".join(lines) + "}\n")
    save(picture(seen), out / "sight.png")
    yield from _correspondence(seen)
    yield from _rotation(seen)
    yield from _readouts(read_out)


def twins(found: Found, figure: str) -> list[float]:
    """Of each unit, the mean of the untrained twins."""
    each = np.array([twin[figure] for twin in found["twins"]], dtype=np.float64)
    # Where a unit has no pair, no twin has a figure, and neither has the prior.
    known = ~np.isnan(each).any(axis=0)
    means = np.full(each.shape[1], np.nan)
    means[known] = each[:, known].mean(axis=0)
    return means.tolist()


def verdict(found: Interval, higher: bool = True) -> str:
    """In words, of trained minus twins."""
    if not found.is_known or found.units < FEWEST:
        return f"no verdict: {found.units} units"
    if found.low <= 0 <= found.high:
        return "no difference shown"
    return "better" if (found.value > 0) == higher else "worse"


def _correspondence(seen: Results) -> Iterator[str]:
    for name in _sets(seen):
        any_one = next(found for (each, _), found in seen.items() if each == name)
        over = f"{len(any_one['twins'][0][HEADLINE])} {any_one['units']}"
        yield f"**{name}**, {any_one['what']}: {any_one['tokens']} tokens seen in two views, intervals over {over}"
        yield ""
        yield from _head("recall")
        for candidate in CANDIDATES:
            if found := seen.get((name, candidate)):
                yield _line(found, HEADLINE)
        for control in CONTROLS:
            known = seen.get((name, "RIFE"))
            if known:
                yield f"| {control} | | {_shown(mean_interval(_units(known['controls'][control][HEADLINE])))} | | | |"
        small = seen.get((name, "small-world"))
        if small:
            pixels = mean_interval(_units(small["controls"]["pixels"][HEADLINE]))
            yield f"| pixels, as small-world is given them | | {_shown(pixels)} | | | |"
        yield ""


def _head(figure: str) -> Iterator[str]:
    yield f"| features | trained for | {figure} | untrained twins: mean; lowest, highest | trained minus twins | |"
    yield "| --- | --- | --- | --- | --- | --- |"


def _line(found: Found, figure: str, higher: bool = True) -> str:
    means = sorted(float(np.nanmean(_units(twin[figure]))) for twin in found["twins"])
    level = mean_interval(twins(found, figure))
    shown = f"{_shown(level)}; {means[0]:.2f}, {means[-1]:.2f}"
    if found["trained"] is None:
        return f"| {found['candidate']} | {found['kind']} | | {shown} | | |"
    own = _units(found["trained"][figure])
    gain = difference_interval(own, twins(found, figure))
    return (
        f"| {found['candidate']} | {found['kind']} | {_shown(mean_interval(own))} | {shown} | "
        f"{_shown(gain, signed=True)} | {verdict(gain, higher)} |"
    )


def _rotation(seen: Results) -> Iterator[str]:
    """Trained minus twins within each bin of rotation, where there are several scenes."""
    for name in _sets(seen):
        here = {candidate: found for (each, candidate), found in seen.items() if each == name and found["trained"]}
        bins = [key for found in here.values() for key in found["trained"] if key.startswith(f"{HEADLINE},")]
        bins = list(dict.fromkeys(bins))
        if len(bins) < 2:
            continue
        yield f"**{name}**, by the rotation between two views: recall, and in brackets trained minus twins"
        yield ""
        yield "| features | " + " | ".join(key.removeprefix(f"{HEADLINE}, ") for key in bins) + " |"
        yield "| --- |" + " --- |" * len(bins)
        for candidate in CANDIDATES:
            if candidate in here:
                yield f"| {candidate} | " + " | ".join(_by_rotation(here[candidate], key) for key in bins) + " |"
        yield ""


def _by_rotation(found: Found, key: str) -> str:
    if key not in found["trained"] or any(key not in twin for twin in found["twins"]):
        return "-"
    own = _units(found["trained"][key])
    gain = difference_interval(own, twins(found, key))
    return f"{float(np.nanmean(own)):.2f} [{_shown(gain, signed=True)}: {verdict(gain)}]"


def _readouts(found: Results) -> Iterator[str]:
    for name in _sets(found):
        here = {candidate: one for (each, candidate), one in found.items() if each == name}
        units = len(next(iter(here.values()))["twins"][0][READ[0]])
        for figure in READ:
            higher = figure in HIGHER
            good = "higher" if higher else "lower"
            yield f"**{name}**, read-out `{figure}` ({good} is better), {units} scenes held out"
            yield ""
            yield from _head("read-out")
            for candidate in CANDIDATES:
                if candidate in here:
                    yield _line(here[candidate], figure, higher)
            for control in ("pixels", "position only"):
                for one in here.values():
                    if control in one["controls"]:
                        level = mean_interval(_units(one["controls"][control][figure]))
                        yield f"| {control} | | {_shown(level)} | | | |"
                        break
            yield ""


def picture(seen: Results) -> Image:
    """Recall on every set, trained networks beside their twins."""
    panels = _sets(seen)
    rows = []
    for candidate in CANDIDATES:
        rows.append(DotRow(candidate, heading=True))
        if candidate != "tiny-wan":
            own = [_of(seen, name, candidate, lambda one: one["trained"]) for name in panels]
            rows.append(DotRow("  trained", own, strong=True))
        rows.append(DotRow("  untrained twins, mean", [_twins_of(seen, name, candidate) for name in panels]))
    rows.append(DotRow("Nothing trained", heading=True))
    for control in CONTROLS:
        values = [_of(seen, name, "RIFE", lambda one, c=control: one["controls"][c]) for name in panels]
        rows.append(DotRow(f"  {control}", values))
    title = "Tokens whose nearest neighbour in the other view lies within one token of the truth (95% intervals)"
    return dot_chart(title, panels, rows)


def _of(seen: Results, name: str, candidate: str, part: object) -> Interval:
    found = seen.get((name, candidate))
    return Interval(float("nan")) if found is None else mean_interval(_units(part(found)[HEADLINE]))


def _twins_of(seen: Results, name: str, candidate: str) -> Interval:
    found = seen.get((name, candidate))
    return Interval(float("nan")) if found is None else mean_interval(twins(found, HEADLINE))


def _sets(found: Results) -> list[str]:
    return [name for name in SETS if any(each == name for each, _ in found)]


def _units(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _shown(found: Interval, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    between = f" ({found.low:{form}} to {found.high:{form}})" if found.is_known else ""
    return f"{found.value:{form}}{between}"
