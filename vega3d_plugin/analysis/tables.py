"""A correspondence result as text, as sentences and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .charts import DotRow, HeatMap, Point, Series, dot_chart, heat_chart, line_chart, scatter_chart, stacked
from .controls import CONTROLS
from .intervals import Interval
from .results import ITSELF, CorrespondenceResult, PriorScores, bins

if TYPE_CHECKING:
    from PIL.Image import Image

    from .comparing import Comparison
    from .sweeping import Cell, SweepResult

PAPER = (
    "For comparison: the paper's own sweeps of Wan 2.1 (ScanRefer, Acc@0.5, one run each) lie between 54.3 and 56.2 "
    "against a baseline of 51.7; pure noise still gives 54.6."
)

#: Controls that no prior worth its price should fail to beat, the strongest first.
_RIVALS = ("untrained twin", "VAE alone", "pixels", "position only", "same position", "views shuffled")
_ENOUGH = 8
_IN_CHART = (ITSELF, "untrained twin", "VAE alone", "pixels", "same position", "random")


def correspondence_table(result: CorrespondenceResult) -> str:
    """See :meth:`CorrespondenceResult.table`."""
    lines = [f"Correspondence, protocol {result.protocol}. 95% intervals by bootstrap over {_over(result)}."]
    rows = []
    for scores, control, figures in result.rows():
        label = scores.label if control == ITSELF else f"  {control}"
        rows.append([label, *(str(value) for value in figures.values())])
    lines += ["", *aligned([["", *result.figures], *rows])]
    for scores in result.priors:
        lines += [f"  {scores.label}, no {name}: {reason}" for name, reason in scores.absent.items()]
    lines += ["", f"{result.headline} by rotation between the views (degrees)"]
    angles = [["", *(f"{low:g}-{high:g}" for low, high in bins())]]
    for scores in result.priors:
        for control in scores.controls:
            values = [scores.figure(result.headline, control, each) for each in bins()]
            angles.append([scores.label if control == ITSELF else f"  {control}", *(str(value) for value in values)])
        angles.append(["  pairs of views", *(str(_pairs(scores, each)) for each in bins())])
    lines += aligned(angles)
    lines += ["", *(f"{name}: {what}." for name, what in result.figures.items())]
    return "\n".join([*lines, "", *correspondence_findings(result)])


def correspondence_findings(result: CorrespondenceResult) -> list[str]:
    """See :meth:`CorrespondenceResult.findings`."""
    found = []
    for scores in result.priors:
        found += [*_offset(result, scores), *_against(result, scores)]
        left_out = sum(scene.left_out for scene in scores.scenes)
        if left_out:
            found.append(f"{scores.label}: {left_out} pairs of views share too little and were left out.")
        repeated = sum(scene.repeated for scene in scores.scenes)
        if repeated:
            found.append(
                f"{scores.label}: {repeated} frames of the clips are repeats, since the scenes have no views between "
                "those that are judged; a video has no such stops."
            )
    found += few_scenes(min(len(scores.scenes) for scores in result.priors))
    found.append(
        "A high score says that features of one place agree between views. It does not say that they help a model to "
        "answer: that is what `vega3d ablate` measures."
    )
    return found


def correspondence_chart(result: CorrespondenceResult) -> Image:
    """See :meth:`CorrespondenceResult.plot`."""
    rows = []
    for scores, control, figures in result.rows():
        if control == ITSELF:
            rows.append(DotRow(scores.label, heading=True))
        rows.append(DotRow(f"  {control}", list(figures.values()), strong=control == ITSELF))
    notes = [f"{name}: {what}." for name, what in result.figures.items()]
    notes.append(f"Bars are 95% intervals by bootstrap over {_over(result)}.")
    above = dot_chart(f"Correspondence, protocol {result.protocol}", list(result.figures), rows, notes)
    series = []
    for number, scores in enumerate(result.priors):
        # What the others are compared with hardly depends on the prior, so that the first one's stands for all.
        for control in scores.controls:
            if control in ((ITSELF, "untrained twin") if number else _IN_CHART):
                label = {ITSELF: scores.label, "untrained twin": f"untrained twin of {scores.label}"}.get(
                    control, control
                )
                values = [scores.figure(result.headline, control, each) for each in bins()]
                series.append(Series(label, values, strong=control == ITSELF))
    places = [f"{low:g}-{high:g}" for low, high in bins()]
    by_angle = line_chart(f"{result.headline} by rotation", places, series, "degrees between the two views")
    return stacked([above, by_angle])


def few_scenes(count: int) -> list[str]:
    """What must be said of intervals over few scenes."""
    if count == 1:
        return ["There is one scene: intervals are over its pairs, which share views, so they are too narrow."]
    if count < _ENOUGH:
        return [
            f"There are {count} scenes: intervals over so few are rough, and rather too narrow. Give {_ENOUGH} or more."
        ]
    return []


def sweep_table(result: SweepResult) -> str:
    """See :meth:`SweepResult.table`."""
    lines = [
        f"Sweep of {result.prior} ({result.context}), protocol {result.protocol}. Means over {result.over}; rows are "
        "taps, columns timesteps."
    ]
    for name in [*result.figures, *result.readouts]:
        rows = [[f"tap {tap}", *(_cell(result, name, each, tap) for each in result.timesteps)] for tap in result.taps]
        lines += ["", name, *aligned([["", *map(_timestep, result.timesteps)], *rows])]
    lines += ["", "(*: not clearly behind the best, which is marked **)"]
    controls = [["", *result.figures]]
    for control in result.controls:
        label = "best timestep and tap" if control == ITSELF else f"  {control}"
        controls.append([label, *(str(result.control(control, name)) for name in result.figures)])
    lines += ["", *aligned(controls)]
    lines += [f"  no {name}: {reason}" for scene in result.scenes[:1] for name, reason in scene.absent.items()]
    return "\n".join([*lines, "", *sweep_findings(result)])


def sweep_findings(result: SweepResult) -> list[str]:
    """See :meth:`SweepResult.findings`."""
    name, best = result.headline, result.best()
    place = f"tap {best.tap}" if best.timestep is None else f"timestep {best.timestep}, tap {best.tap}"
    found = [f"Best {name}: {place}, with {result.figure(best, name)} over {result.over}."]
    others, close = len(result.cells) - 1, result.within_noise()
    if others:
        least = min(result.figure(cell, name).value for cell in result.cells)
        found.append(
            f"{len(close)} of the {others} other cells are within noise of it: the interval of their difference "
            f"includes 0. The whole grid spans {least:.3f} to {result.figure(best, name).value:.3f}. The best cell was "
            "chosen on these scenes, so its lead is somewhat flattered: confirm it on others."
        )
    differences = {control: result.ahead(control, name) for control in result.controls if control in _RIVALS}
    not_above = [f"{control} ({each.value:+.3f})" for control, each in differences.items() if _clear(each) < 1]
    if not_above:
        found.append(f"Even at its best it is NOT clearly above {_listed(not_above)}.")
    if result.forwards > 1:
        found.append(f"Each timestep cost {result.forwards} forwards a scene: not all taps came from one.")
    return [*found, *few_scenes(len(result.scenes)), PAPER]


def sweep_chart(result: SweepResult) -> Image:
    """See :meth:`SweepResult.plot`."""
    maps = []
    for name in [*result.figures, *result.readouts]:
        marked, best = [], None
        if name in result.figures:
            best = _where(result, result.best(name))
            marked = [_where(result, cell) for cell in result.within_noise(name)]
        maps.append(HeatMap(name, result.grid(name), marked, best))
    notes = [
        "Red frame: best. Black frames: not clearly behind it (the 95% interval of the difference includes 0, over "
        f"{result.over}). Colours span each map's own lowest to highest number.",
        *(f"{name}: {what}." for name, what in {**result.figures, **result.readouts}.items()),
        PAPER,
    ]
    return heat_chart(
        f"{result.prior} ({result.context}): timesteps and taps, protocol {result.protocol}",
        maps,
        [str(tap) for tap in result.taps],
        [_timestep(timestep) for timestep in result.timesteps],
        row_title="tap",
        column_title="timestep",
        notes=notes,
    )


def comparison_table(comparison: Comparison) -> str:
    """See :meth:`Comparison.table`."""
    result, name = comparison.result, comparison.result.headline
    others = [figure for figure in result.figures if figure != name]
    head = ["", name, "untrained twin", "above it by", *others]
    rows = [[*head, comparison.downstream_name] if comparison.downstream else head]
    for k in _ranked(result):
        scores = result.priors[k]
        row = [comparison.labels[k], str(scores.figure(name)), str(scores.figure(name, "untrained twin"))]
        row += [str(scores.difference(name, "untrained twin")), *(str(scores.figure(each)) for each in others)]
        if comparison.downstream:
            value = comparison.downstream[k]
            row.append("-" if value is None else f"{value:g}")
        rows.append(row)
    lines = [
        f"{len(result.priors)} priors, protocol {result.protocol}. 95% intervals by bootstrap over {_over(result)}."
    ]
    lines += ["", *aligned(rows)]
    if comparison.pearson:
        count = sum(value is not None for value in comparison.downstream)
        found = [["", "Pearson", "Spearman"]]
        for figure, each in comparison.pearson.items():
            found.append([figure, str(each.interval), str(comparison.spearman[figure].interval)])
        lines += ["", f"With {comparison.downstream_name}, over {count} priors", *aligned(found)]
        lines += ["", "A correlation over so few priors is rough, and says nothing of causes."]
    return "\n".join([*lines, "", *comparison.notes, *few_scenes(min(len(s.scenes) for s in result.priors))]).rstrip()


def comparison_chart(comparison: Comparison) -> Image:
    """See :meth:`Comparison.plot`."""
    result = comparison.result
    if not comparison.pearson:
        rows = [
            DotRow(comparison.labels[k], [result.priors[k].figure(name) for name in result.figures], strong=True)
            for k in _ranked(result)
        ]
        notes = [f"{name}: {what}." for name, what in result.figures.items()]
        return dot_chart(f"{len(rows)} priors, protocol {result.protocol}", list(result.figures), rows, notes)
    first = next(iter(result.figures))
    pictures = []
    for figure in dict.fromkeys([result.headline, first]):
        points = [
            Point(scores.figure(figure).value, value, label)
            for scores, value, label in zip(result.priors, comparison.downstream, comparison.labels, strict=True)
            if value is not None
        ]
        notes = [
            f"Pearson {comparison.pearson[figure].interval}, Spearman {comparison.spearman[figure].interval} over "
            f"{len(points)} priors (95% intervals by bootstrap over them). {figure}: {result.figures[figure]}."
        ]
        title = f"{figure} and {comparison.downstream_name}"
        pictures.append(scatter_chart(title, points, figure, comparison.downstream_name, notes=notes))
    return stacked(pictures)


def _ranked(result: CorrespondenceResult) -> list[int]:
    """Indices of the priors, that with the highest headline first."""
    values = [scores.figure(result.headline).value for scores in result.priors]
    return sorted(range(len(values)), key=lambda k: (math.isnan(values[k]), -values[k]))


def _cell(result: SweepResult, name: str, timestep: int | None, tap: int) -> str:
    cell = result.cell(timestep, tap)
    if name not in result.figures:
        return f"{cell.readout[name]:.3f}" if name in cell.readout else "-"
    value = result.figure(cell, name).value
    mark = "**" if cell is result.best(name) else "*" if cell in result.within_noise(name) else ""
    return "-" if math.isnan(value) else f"{value:.3f}{mark}"


def _timestep(timestep: int | None) -> str:
    return "no noise" if timestep is None else str(timestep)


def _where(result: SweepResult, cell: Cell) -> tuple[int, int]:
    return result.taps.index(cell.tap), result.timesteps.index(cell.timestep)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, in columns: the first to the left, the others to the left too, two blanks between."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _over(result: CorrespondenceResult) -> str:
    kinds = list(dict.fromkeys(scores.over for scores in result.priors))
    return " or ".join(kinds)


def _pairs(scores: PriorScores, angles: tuple[float, float]) -> int:
    low, high = angles
    return sum(low <= angle < high or (high == 180 and angle == high) for s in scores.scenes for angle in s.angles)


def _offset(result: CorrespondenceResult, scores: PriorScores) -> list[str]:
    """What of the uncentred cosine is offset."""
    raw = next((name for name in ("cosine", "score") if name in result.figures), None)
    if raw is None or "centred" not in result.figures:
        return []
    whole, centred = scores.figure(raw), scores.figure("centred")
    text = f"{scores.label}: {raw} {whole}, of which {whole.value - centred.value:.3f} is an offset that all tokens "
    text += f"share; without it {centred}."
    noise = scores.figure(raw, "offset and noise")
    if not math.isnan(noise.value):
        text += f" Noise around the same mean reaches {noise}."
    return [text]


def _against(result: CorrespondenceResult, scores: PriorScores) -> list[str]:
    """Whether the headline is above its controls."""
    name = result.headline
    rivals = [control for control in _RIVALS if control in scores.controls]
    differences = {control: scores.difference(name, control) for control in rivals}
    above = [control for control in rivals if _clear(differences[control]) > 0]
    not_above = [f"{control} ({differences[control].value:+.3f})" for control in rivals if control not in above]
    sentences = []
    if above:
        shown = [f"{control} by {differences[control]}" for control in above]
        sentences.append(f"{scores.label}: {name} is above {_listed(shown)}.")
    if not_above:
        sentences.append(
            f"{scores.label}: {name} is NOT clearly above {_listed(not_above)}: nothing here shows that it knows more "
            "of space than that."
        )
    missing = [control for control in CONTROLS if control not in scores.controls]
    if missing:
        sentences.append(f"{scores.label}: judged without these controls: {', '.join(missing)}.")
    return sentences


def _clear(difference: Interval) -> int:
    """1 or -1 where the whole interval is above or below 0, else 0."""
    if not difference.is_known:
        return 0
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
