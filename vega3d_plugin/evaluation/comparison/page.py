"""The comparison as one page."""

from __future__ import annotations

import math

from ...analysis.report.blocks import Block, DotPanel, DotRow, Dots, Finding, Findings, Prose, Table, Tone
from ...analysis.report.page import Page, Section
from ..verdicts import MEASURES, Effect
from .run import Comparison


def comparison_page(found: Comparison, title: str) -> Page:
    """One HTML page: verdicts, means, differences by type of question, and what to know before believing them."""
    whole = [effect for effect in found.effects if effect.type == "all"]
    by_type = [effect for effect in found.effects if effect.type != "all"]
    doubts: list[Block] = []
    if found.notes or found.not_computed:
        doubts = [Prose([*found.notes, *found.not_computed])]
    sections = [
        Section("Means", [_means(found)], "Over the questions in common and over the runs of a side."),
        Section("Differences", [_dots(whole), _effects(whole)], "The first minus the second, row by row."),
    ]
    if by_type:
        sections.append(Section("By type of question", [_effects(by_type)]))
    if doubts:
        sections.append(Section("Before you believe it", doubts))
    return Page(
        title,
        sections,
        eyebrow="comparison of runs",
        lead=f"{found.questions:,} questions about {found.groups:,} pictures. {found.protocol}.",
        top=[Findings([_finding(effect) for effect in whole])],
    )


def _finding(effect: Effect) -> Finding:
    tones: dict[str, Tone] = {"better": "good", "worse": "bad"}
    tone: Tone = next((tone for word, tone in tones.items() if f" is {word}" in effect.verdict), "open")
    shown, interval, _ = effect.shown
    return Finding(
        f"{effect.measure}, {effect.first} against {effect.second}: {effect.verdict} ({shown}, {interval}).", tone
    )


def _means(found: Comparison) -> Table:
    keys = list(dict.fromkeys((m["type"], m["measure"]) for m in found.means))
    sides = list(dict.fromkeys((m["side"], m["control"]) for m in found.means))
    values = {(m["side"], m["control"], m["type"], m["measure"]): m for m in found.means}
    rows: list[list[str | tuple[str, str]]] = []
    for kind, measure in keys:
        cells = [values.get((*side, kind, measure)) for side in sides]
        shown = [
            "-" if m is None else "not finite" if m["mean"] is None else MEASURES[measure].shown(m["mean"])
            for m in cells
        ]
        rows.append([(kind, measure), *shown, str(max(m["questions"] for m in cells if m))])
    heads = [name if control == "on" else f"{name}:{control}" for name, control in sides]
    return Table(["type", *heads, "questions"], rows)


def _effects(effects: list[Effect]) -> Table:
    rows: list[list[str | tuple[str, str]]] = [
        [(f"{e.first} - {e.second}", f"{e.type}, {e.measure}"), *e.shown, f"{e.questions:,}", e.verdict]
        for e in effects
    ]
    return Table(["pair", "difference", "95% interval", "effect size", "questions", "verdict"], rows, numeric=False)


def _dots(effects: list[Effect]) -> Dots:
    panels = []
    for name, measure in MEASURES.items():
        rows = [
            DotRow(f"{e.first} - {e.second}", e.difference, _number(e.low), _number(e.high), strong=" is " in e.verdict)
            for e in effects
            if e.measure == name
        ]
        if rows:
            better = "higher is better" if measure.higher else "lower is better"
            panels.append(DotPanel(f"difference in {name}", rows, f"{measure.what}; {better}"))
    return Dots(panels)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
