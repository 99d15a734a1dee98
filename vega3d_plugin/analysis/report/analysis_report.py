"""``vega3d analyse report``: everything that was found in a folder, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...storage.versions import DISTRIBUTION, package_version
from ..comparing import Comparison
from ..intervals import Interval
from ..readouts.results import ReadoutResult
from ..records import ITSELF
from ..results import CorrespondenceResult
from ..sweeping import SweepResult
from .blocks import Card, Cards, Commands, Finding, Findings, Tone
from .page import Page, Section, write_page
from .results import FoundResults, listed, read_results
from .sections import (
    comparison_section,
    correspondence_section,
    read_picture,
    readout_section,
    scenes_section,
    settings_section,
    shown_name,
    sweep_section,
)

FILE = "report.html"
#: What only a trained prior should be above.
TWIN = "untrained twin"
_KNOWN_PACKAGES = ("torch", "transformers", "diffusers", "numpy", "pillow")

MAY = (
    "On scenes like these, with these settings: how far features of one place agree between views, and how well a "
    "small head reads points, depth and poses from them, beyond the controls and within the intervals shown."
)
MAY_NOT = (
    "That a language model answers better with this prior, that the best cell of a sweep is best on other scenes, or "
    "that figures of other scenes, views or sizes compare with these. `vega3d ablate` measures the first."
)


@dataclass(frozen=True)
class Evidence:
    """One figure of a prior beside its untrained twin. Attributes: ``what`` it is; ``value``; ``twin``;
    ``is_better``: None while the interval of the difference contains 0."""

    what: str
    value: Interval
    twin: Interval
    is_better: bool | None


def write_report(folder: str | Path, to: str | Path | None = None, title: str | None = None) -> Path:
    """Write one self-contained HTML file of all results in a folder; return its path.

    Args:
        folder: the ``--out`` folder of ``vega3d analyse``: results as JSON, pictures in ``pictures/``, contact sheets
            in ``scenes/``.
        to: the file; default: ``report.html`` in the folder.
        title: of the page; default: a question about the priors.

    Raises:
        ReportError: no such folder, nothing to show in it, or a damaged picture.
        AnalysisError: a damaged result.
    """
    results = read_results(folder)
    return write_page(analysis_page(results, title), Path(to) if to else results.folder / FILE)


def analysis_page(results: FoundResults, title: str | None = None) -> Page:
    """The page of some results."""
    evidence = evidence_of(results)
    sheets = [
        read_picture(path, f"Views of {shown_name(path)}, and the way of the camera from above")
        for path in results.scene_sheets()
    ]
    sections = [_conclusions(evidence)]
    if any(results.of(kind) for kind in (CorrespondenceResult, SweepResult, ReadoutResult)):
        sections.append(scenes_section(results, sheets))
    for kind, make in (
        (CorrespondenceResult, correspondence_section),
        (SweepResult, sweep_section),
        (ReadoutResult, readout_section),
        (Comparison, comparison_section),
    ):
        if results.of(kind):
            sections.append(make(results))
    sections.append(settings_section(results, _versions()))
    labels = list(dict.fromkeys(label for label, _ in evidence))
    names = list(dict.fromkeys(label.rpartition(" (")[0] or label for label in labels))
    return Page(
        title or (f"Does {names[0]} know space?" if len(names) == 1 else f"Which of {len(names)} priors knows space?"),
        sections,
        eyebrow="vega3d analysis",
        lead=_answer(evidence),
        top=[_cards(evidence)],
    )


def evidence_of(results: FoundResults) -> list[tuple[str, Evidence]]:
    """For each prior in each context, its main figures beside its untrained twin's."""
    found: list[tuple[str, Evidence]] = []
    for _, result in results.of(CorrespondenceResult):
        for scores in result.priors:
            name = result.headline
            difference = scores.difference(name, TWIN)
            better = None if not difference.is_known or difference.low <= 0 <= difference.high else difference.value > 0
            what = f"correspondence, {name}"
            found.append((scores.label, Evidence(what, scores.figure(name), scores.figure(name, TWIN), better)))
    for _, readouts in results.of(ReadoutResult):
        for readout in readouts.priors:
            for name in readouts.headlines:
                better = readouts.better(name, readout.difference(name, TWIN))
                what = f"read-out, {name}"
                found.append((readout.label, Evidence(what, readout.figure(name), readout.figure(name, TWIN), better)))
    for _, sweep in results.of(SweepResult):
        name = sweep.headline
        ahead = sweep.ahead(TWIN, name)
        better = None if not ahead.is_known or ahead.low <= 0 <= ahead.high else ahead.value > 0
        what = f"best cell of the sweep, {name}"
        label = f"{sweep.prior} ({sweep.context})"
        found.append((label, Evidence(what, sweep.control(ITSELF, name), sweep.control(TWIN, name), better)))
    return found


def _answer(evidence: Sequence[tuple[str, Evidence]]) -> str:
    """The answer in a sentence for each prior, at most three of them."""
    sentences = []
    for label in dict.fromkeys(label for label, _ in evidence):
        of_it = [each for name, each in evidence if name == label]
        judged = [each for each in of_it if each.twin.units]
        if not judged:
            sentences.append(f"{label} has no untrained twin here, so nothing shows what it has learned.")
            continue
        better = [each.what for each in judged if each.is_better]
        worse = [each.what for each in judged if each.is_better is False]
        if better:
            text = f"{label} is clearly better than its untrained twin in {listed(better)}"
            sentences.append(f"{text}, and worse in {listed(worse)}." if worse else f"{text}.")
        else:
            sentences.append(
                f"{label} is not clearly better than its untrained twin in any figure: nothing here shows that it has "
                "learned anything about space."
            )
    more = f" {len(sentences) - 3} more below." if len(sentences) > 3 else ""
    return " ".join(sentences[:3]) + more


def _cards(evidence: Sequence[tuple[str, Evidence]]) -> Cards:
    cards = []
    for label, each in evidence[:8]:
        tone: Tone = "note" if not each.twin.units else {True: "good", False: "bad", None: "open"}[each.is_better]  # type: ignore[assignment]
        verdict = {"good": "better than", "bad": "worse than", "open": "not clearly apart from", "note": ""}[tone]
        note = f"{verdict} its untrained twin, {each.twin}" if verdict else "no untrained twin"
        cards.append(Card(f"{label}: {each.what}", f"{each.value.value:.3f}", note, tone))
    return Cards(cards)


def _conclusions(evidence: Sequence[tuple[str, Evidence]]) -> Section:
    items = [Finding(MAY, "good", "you may"), Finding(MAY_NOT, "bad", "you may not")]
    without = sorted({label for label, each in evidence if not each.twin.units})
    if without:
        text = (
            f"{listed(without)}: judged without an untrained twin, so nothing separates what was learned from what the "
        )
        items.append(Finding(f"{text}architecture gives for free.", "open"))
    next_step = Commands(
        ["vega3d ablate MODEL --data mine.json", "vega3d analyse compare analysis_out/*.json --downstream scores.csv"],
        "What answers the rest:",
    )
    return Section("What you may conclude", [Findings(items), next_step])


def _versions() -> list[tuple[str, str]]:
    return [(f"{name}, here", package_version(name) or "not installed") for name in (DISTRIBUTION, *_KNOWN_PACKAGES)]
