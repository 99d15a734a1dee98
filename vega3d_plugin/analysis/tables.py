"""A correspondence result as text, as sentences and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .charts import DotRow, Series, dot_chart, line_chart, stacked
from .controls import CONTROLS
from .intervals import Interval
from .results import ITSELF, CorrespondenceResult, PriorScores, bins

if TYPE_CHECKING:
    from PIL.Image import Image

#: Controls that no prior worth its price should fail to beat, the strongest first.
_RIVALS = ("untrained twin", "VAE alone", "pixels", "position only", "same position", "views shuffled")
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
    if max(len(scores.scenes) for scores in result.priors) == 1:
        found.append("There is one scene: intervals are over its pairs, which share views, so they are too narrow.")
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
