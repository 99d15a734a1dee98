"""The sections of the analysis report, each from the results of its kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contracts.errors import AnalysisError, ReportError
from ..comparing import Comparison
from ..intervals import Interval
from ..readouts.pictures import SHOWN, decode_frame, depth_colours, depth_maps
from ..readouts.records import PriorReadout
from ..readouts.results import ReadoutResult
from ..records import ITSELF, PriorScores, bins
from ..results import CorrespondenceResult
from ..sweeping import SweepResult
from .blocks import (
    Block,
    Details,
    DotPanel,
    DotRow,
    Dots,
    Facts,
    Finding,
    Findings,
    Gallery,
    HeatGrid,
    HeatGrids,
    Picture,
    PictureRow,
    PictureRows,
    Prose,
    Table,
    Tone,
)
from .page import Section
from .results import FoundResults

#: Rows of a dot chart beyond which it is folded away below a shorter one.
_MAIN = (ITSELF, "untrained twin", "VAE alone", "pixels", "position only")


def scenes_section(results: FoundResults, sheets: Sequence[Picture]) -> Section:
    """Contact sheets, and what each scene was used for."""
    uses: dict[tuple[str, str], dict[str, list[str]]] = {}

    def note(scene: Any, views: object, use: str) -> None:
        # Verbs may choose other views of one scene, so that it has several fingerprints.
        row = uses.setdefault((scene.scene, scene.source), {"views": [], "uses": [], "fingerprints": []})
        for name, value in (("views", str(views)), ("uses", use), ("fingerprints", scene.fingerprint[:12])):
            row[name] += [value] if value not in row[name] else []

    for _, result in results.of(CorrespondenceResult):
        for scores in result.priors:
            for scene in scores.scenes:
                note(scene, len(scene.views), f"correspondence ({result.protocol})")
    for _, sweep in results.of(SweepResult):
        for scene in sweep.scenes:
            note(scene, len(scene.views), "sweep")
    for _, found in results.of(ReadoutResult):
        for readout in found.priors:
            for use, group in (("read-out, held out", readout.held_out), ("read-out, training", readout.training)):
                for each in group:
                    note(each, found.options.get("views", ""), use)
    rows = [
        [name, source, ", ".join(row["views"]), ", ".join(row["uses"]), ", ".join(row["fingerprints"])]
        for (name, source), row in sorted(uses.items())
    ]
    table = Table(["scene", "source", "views", "used for", "fingerprint of the views"], rows, numeric=False)
    blocks: list[Block] = [Gallery(sheets, wide=True)] if sheets else []
    blocks.append(Details(f"All {len(rows)} scenes", [table], open=not sheets))
    lead = "Views of the first scenes, the way of the camera from above, and what each scene was used for."
    return Section("Scenes", blocks, lead if sheets else "What each scene was used for.")


def correspondence_section(results: FoundResults) -> Section:
    """Figures with their controls, pictures over the frames, and figures by rotation."""
    blocks: list[Block] = []
    for path, result in results.of(CorrespondenceResult):
        blocks += [
            Prose(
                [f"Protocol {result.protocol}, {path.name}. 95% intervals by bootstrap over {_over(result.priors)}."]
            ),
            findings(result.findings()),
            Dots([_panel(result.figures, name, result.priors) for name in result.figures]),
            Details("By rotation between the two views", [_by_rotation(result)]),
        ]
        for number, scores in enumerate(result.priors):
            alt = f"{scores.label}: scores, matches and features"
            pictures = [(path, read_picture(path, alt)) for path in results.pictures_of(scores.fingerprint)]
            for place, (path, picture) in enumerate(pictures):
                scene = shown_name(path).removesuffix(f"_{scores.prior}_{scores.context}")
                title = f"{scores.label} over the frames of {scene}: scores, matches, features"
                blocks.append(Details(title, [Gallery([picture], wide=True)], open=number == place == 0))
    lead = "Do features of one place agree between views? Tokens correspond where depth and poses say so; a shared "
    return Section("Correspondence", blocks, lead + "offset raises the plain cosine, so the centred one counts.")


def sweep_section(results: FoundResults) -> Section:
    """Heat maps of timesteps and taps, with the controls of the best cell."""
    blocks: list[Block] = []
    for path, result in results.of(SweepResult):
        blocks += [Prose([f"{result.prior} ({result.context}), protocol {result.protocol}, {path.name}."])]
        blocks.append(findings(result.findings()))
        grids = []
        for name in [*result.figures, *result.readouts]:
            about = {**result.figures, **result.readouts}[name]
            best, close = None, []
            if name in result.figures:
                best = _cell(result, result.best(name))
                close = [_cell(result, cell) for cell in result.within_noise(name)]
            columns = ["no noise" if t is None else str(t) for t in result.timesteps]
            rows = [str(tap) for tap in result.taps]
            grid = result.grid(name)
            grids.append(HeatGrid(name, columns, rows, grid, "tap \\ timestep", f"{about}.", best, close))
        blocks.append(HeatGrids(grids))
        panel_rows = [
            DotRow("best cell" if c == ITSELF else c, *_three(result.control(c, result.headline)), strong=c == ITSELF)
            for c in result.controls
        ]
        blocks.append(Dots([DotPanel(f"{result.headline}, the best cell and its controls", panel_rows)]))
    lead = "Which timestep and which block? ★ is the best cell, dashed ones are not clearly behind it."
    return Section("Sweep", blocks, lead)


def readout_section(results: FoundResults) -> Section:
    """Figures with their controls, predicted against true depth, and how much was learned by heart."""
    blocks: list[Block] = []
    for path, result in results.of(ReadoutResult):
        first, size = result.priors[0], result.options.get("size", "small")
        blocks += [
            Prose(
                [
                    f"Size {size}, {path.name}: trained on {len(first.training)} scenes, judged on "
                    f"{len(first.held_out)} others. 95% intervals by bootstrap over the held-out scenes."
                ]
            ),
            findings(result.findings()),
            Dots([_panel(result.figures, name, result.priors) for name in result.headlines]),
            *(block for readout in result.priors for block in depth_rows(readout, path)),
            Details("All figures", [_all_figures(result)]),
            Details("On the scenes of the training: what was learned by heart", [_all_figures(result, training=True)]),
        ]
    lead = "What can a small head read of space from the frozen features, on scenes that it was not trained on?"
    return Section("Read-outs", blocks, lead)


def comparison_section(results: FoundResults) -> Section:
    """Several priors in one table, and the scatter plot."""
    blocks: list[Block] = []
    for path, comparison in results.of(Comparison):
        result, name = comparison.result, comparison.result.headline
        columns = ["prior", name, "untrained twin", "above it by", *(f for f in result.figures if f != name)]
        rows: list[list[str | tuple[str, str]]] = []
        for label, scores in zip(comparison.labels, result.priors, strict=True):
            values = [
                scores.figure(name),
                scores.figure(name, "untrained twin"),
                scores.difference(name, "untrained twin"),
            ]
            values += [scores.figure(other) for other in result.figures if other != name]
            rows.append([label, *(two_lines(value) for value in values)])
        if comparison.downstream:
            columns.append(comparison.downstream_name)
            for row, value in zip(rows, comparison.downstream, strict=True):
                row.append("none" if value is None else f"{value:g}")
        blocks += [Prose([f"{path.name}, protocol {result.protocol}."]), Table(columns, rows)]
        if comparison.pearson:
            found = [
                [figure, two_lines(each.interval), two_lines(comparison.spearman[figure].interval)]
                for figure, each in comparison.pearson.items()
            ]
            blocks.append(Table(["figure", "Pearson", "Spearman"], found, caption=f"With {comparison.downstream_name}"))
            picture = Picture.of(comparison.plot(), f"Scatter plot of {name} and {comparison.downstream_name}")
            blocks.append(Gallery([picture], wide=True))
        blocks.append(findings(comparison.notes))
    return Section("Comparison", blocks, "Several priors, and whether what they score goes with what they are worth.")


def settings_section(results: FoundResults, versions: Sequence[tuple[str, str]]) -> Section:
    """Settings, versions and fingerprints: what it takes to get the same figures again."""
    blocks: list[Block] = [Details("Versions", [Facts(versions)])]
    for path, result in results.of(CorrespondenceResult):
        blocks.append(_settings(path, result.library, {"protocol": result.protocol, **result.options}))
        blocks += [_prior_settings(s.label, s.fingerprint, s.settings, s.feature_dim) for s in result.priors]
    for path, sweep in results.of(SweepResult):
        blocks.append(_settings(path, sweep.library, {"protocol": sweep.protocol, **sweep.options}))
        blocks.append(_prior_settings(f"{sweep.prior} ({sweep.context})", "", sweep.settings, None))
    for path, readout in results.of(ReadoutResult):
        blocks.append(_settings(path, readout.library, readout.options))
        blocks += [_prior_settings(r.label, r.fingerprint, r.settings, r.feature_dim) for r in readout.priors]
    unique = list({block.summary: block for block in blocks if isinstance(block, Details)}.values())
    return Section("Settings", unique, "Everything that the figures depend on.")


# Parts


def findings(lines: Iterable[str]) -> Findings:
    """Sentences of a result, each with the tone of what it says."""
    return Findings([Finding(line, tone(line)) for line in lines])


def tone(line: str) -> Tone:
    """The tone of a sentence of a result."""
    if "WORSE" in line:
        return "bad"
    if "NOT clearly" in line or "too few to tell" in line:
        return "open"
    return "good" if " is above " in line or " is better than " in line else "note"


def two_lines(value: Interval) -> str | tuple[str, str]:
    """A figure with its interval below it."""
    if math.isnan(value.value):
        return "none"
    main = f"{value.value:.3f}"
    return (main, f"{value.low:.3f} to {value.high:.3f}") if value.is_known else main


def shown_name(path: Path) -> str:
    """What a picture beside the results is of: its name without the fingerprint at the end."""
    return path.stem.rpartition("_")[0] or path.stem


def read_picture(path: Path, alt: str) -> Picture:
    """A picture beside the results.

    Raises:
        ReportError: it cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        return Picture(data, alt)
    except ReportError as error:
        raise ReportError(f"{path}: {error} Delete it, or run again what wrote it.") from None


def depth_rows(readout: PriorReadout, path: Path) -> list[Block]:
    """What a prior saw, the true depth and what was read out, of its examples.

    Args:
        readout: of the prior.
        path: of the result, for messages.

    Raises:
        AnalysisError: a picture in the result cannot be read.
    """
    try:
        return _depth_rows(readout) if readout.examples else []
    except AnalysisError as error:
        raise AnalysisError(f"{path}: {error} Run `vega3d analyse readout` again.") from None


def _depth_rows(readout: PriorReadout) -> list[Block]:
    controls = [ITSELF, *(c for c in SHOWN if any(c in example.predicted for example in readout.examples))]
    rows = []
    for example in readout.examples:
        pictures, low, high = depth_colours(depth_maps(example, controls))
        where = f"{example.scene}, {example.view}"
        shown: list[Picture | None] = [
            Picture.of(
                decode_frame(example.frame, f"The frame of {where}"), f"What the prior sees of {where}", photo=True
            )
        ]
        for name in ["true", *controls]:
            alt = f"{'True depth' if name == 'true' else f'Depth read out of {name}'}, {where}"
            shown.append(Picture.of(pictures[name], alt, pixelated=True) if name in pictures else None)
        rows.append(PictureRow(f"{where}: {low:.1f} to {high:.1f} m", shown))
    columns = ["what the prior sees", "true depth", *("read out" if c == ITSELF else c for c in controls)]
    about = f"{readout.label}: depth of held-out views through the linear head. Near is light, one scale a row."
    return [PictureRows(columns, rows, about)]


def _panel(figures: Mapping[str, str], name: str, priors: Sequence[PriorScores] | Sequence[PriorReadout]) -> DotPanel:
    rows = []
    for prior in priors:
        rows.append(DotRow(prior.label, heading=True))
        for control in prior.controls:
            rows.append(DotRow(control, *_three(prior.figure(name, control)), strong=control == ITSELF))
    return DotPanel(name, rows, f"{figures[name]}.")


def _by_rotation(result: CorrespondenceResult) -> Table:
    columns = ["degrees", *(f"{low:g} to {high:g}" for low, high in bins())]
    rows: list[list[str | tuple[str, str]]] = []
    strong = []
    for scores in result.priors:
        strong.append(len(rows))
        for control in scores.controls:
            values = [two_lines(scores.figure(result.headline, control, each)) for each in bins()]
            rows.append([scores.label if control == ITSELF else control, *values])
    return Table(columns, rows, strong, result.headline)


def _all_figures(result: ReadoutResult, training: bool = False) -> Table:
    rows: list[list[str | tuple[str, str]]] = []
    strong = []
    for readout in result.priors:
        strong.append(len(rows))
        for control in readout.controls:
            values = [two_lines(readout.figure(name, control, training)) for name in result.figures]
            rows.append([readout.label if control == ITSELF else control, *values])
    return Table(["", *result.figures], rows, strong)


def _settings(path: Path, library: str, options: Mapping[str, Any]) -> Details:
    pairs = [("written by", f"vega3d-plugin {library}"), *_plain(options)]
    return Details(f"{path.name}: how it was made", [Facts(pairs)])


def _prior_settings(label: str, fingerprint: str, settings: Mapping[str, Any], dim: int | None) -> Details:
    pairs = [("fingerprint", fingerprint)] if fingerprint else []
    pairs += [("channels", str(dim))] if dim else []
    return Details(f"{label}: the prior's settings", [Facts([*pairs, *_plain(settings)])])


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(each)}" for key, each in value.items()) or "none"
    return "none" if value is None or value == "" else str(value)


def _cell(result: SweepResult, cell: Any) -> tuple[int, int]:
    return result.taps.index(cell.tap), result.timesteps.index(cell.timestep)


def _three(value: Interval) -> tuple[float, float, float]:
    return value.value, value.low, value.high


def _over(priors: Sequence[PriorScores]) -> str:
    return " or ".join(dict.fromkeys(scores.over for scores in priors))
