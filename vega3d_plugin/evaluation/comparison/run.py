"""The comparison of sides: their answers, with controls, and every difference with its interval and verdict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts.errors import AnalysisError, BadRowsError, SettingsError
from ...recipes.blocks import DataSettings
from ..answering.controls import CONTROLS, MEANING, Control
from ..answering.parts import AnswersError, checked_run
from ..answering.run import answer
from ..harness_host import EvaluatedHost, HostArguments
from ..verdicts import MEASURES, Effect, Floats, compared
from .measures import group_of, kinds, type_of, values_of
from .overlap import overlap
from .reading import Line, read_answers, same_questions
from .sides import Run, Side

Start = Callable[[int, int, str], Callable[[int], None]]
#: Names of what was left out that a message lists.
_SHOWN = 5


@dataclass
class Comparison:
    """What was found.

    Attributes:
        protocol: how the answers were made, in a line.
        means: by side, control, type and measure, over the questions in common and over runs; with the count.
        effects: of each pair of sides, and of each side and its controls.
        notes: what a reader has to know before believing a figure.
        not_computed: what is missing, with the reason.
        questions: in common.
        groups: of different pictures.
    """

    protocol: str
    questions: int
    groups: int
    means: list[dict[str, Any]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_computed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "protocol": self.protocol, "questions": self.questions, "pictures": self.groups, "means": self.means,
            "effects": [effect.to_dict() for effect in self.effects], "notes": self.notes,
            "not_computed": self.not_computed,
        }  # fmt: skip


@dataclass
class _Answers:
    """The answers of one side under one control: for each run the lines by id, and what the file says of itself."""

    name: str
    control: str
    runs: list[dict[str, Line]] = field(default_factory=list)
    records: list[dict[str, Any] | None] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name if self.control == "on" else f"{self.name}:{self.control}"


def compare(
    sides: Sequence[Side],
    files: Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    controls: Sequence[Control] = CONTROLS[1:],
    data: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    likelihood: bool = True,
    seed: int = 0,
    resamples: int = 10_000,
    start: Start = lambda total, found, what: lambda count: None,
) -> Comparison:
    """Compare runs, row by row.

    Sides that are models answer first, each run under each control, into ``out``/answers; a comparison that was killed
    is resumed by the same call. Sides that are files of answers are read. Questions that not all have answered are
    left out, counted and named.

    Args:
        sides: from :func:`~.sides.read_sides`.
        files: rows, where a side is a model.
        out: folder for the answers of models.
        controls: of sides with a branch, besides ``on``.
        data, limit, batch_size, likelihood: as of :func:`~vega3d_plugin.evaluation.answering.run.answer`.
        seed, resamples: of the bootstrap.
        start: called with a number of questions, how many are answered, and whose answers they are.

    Raises:
        SettingsError: a model without rows or folder, or one side without controls.
        BadRowsError: no question in common.
        AnswersError, ...: as of :func:`~vega3d_plugin.evaluation.answering.run.answer`.
    """
    if any(run.arguments is not None for side in sides for run in side.runs) and (not files or out is None):
        raise SettingsError("Models are compared on rows: name them, --data FILE, and a folder, --out DIR.")
    if len(sides) == 1 and not (sides[0].branch and controls):
        raise SettingsError("One side without controls is no comparison: name another run, or controls of its branch.")
    told: list[str] = []
    options = {"data": data, "limit": limit, "batch_size": batch_size, "likelihood": likelihood}
    answers = []
    for side in sides:
        asked: list[Control] = ["on", *(controls if side.branch else ())]
        answers += _of_side(side, asked, files, out, options, told, start)
    return _judged(answers, told, seed, resamples)


def _of_side(
    side: Side, controls: Sequence[Control], files: Any, out: Any, options: Any, told: list[str], start: Start
) -> list[_Answers]:
    """The answers of a side under each control; a control that cannot be had for one run is left out for all."""
    found = {control: _Answers(side.name, control) for control in controls}
    for number, run in enumerate(side.runs):
        load = _Loaded()
        for control in list(found):
            name = f"{side.name} {number + 1}/{len(side.runs)} {control}"
            try:
                path = run.answers or _answered(
                    run, control, Path(out), (side.name, number), files, options, load, start
                )
            except (AnalysisError, BadRowsError) as error:
                if control == "on":
                    raise
                told.append(f"{name}: not computed: {error}")
                del found[control]
                continue
            found[control].runs.append(read_answers(path))
            found[control].records.append(checked_run(path))
    return list(found.values())


def _answered(
    run: Run, control: Control, out: Path, place: tuple[str, int], files: Any, options: Any, load: Any, start: Start
) -> Path:
    assert run.arguments is not None
    stem = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in place[0])
    path = out / "answers" / f"{stem}-{place[1] + 1}-{control}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    what = f"{place[0]} {place[1] + 1} {control}"
    found = answer(
        run.arguments, files, path, control=control, host=load,
        start=lambda total, done: start(total, done, what), **options,
    )  # fmt: skip
    if found.missing:
        raise AnswersError(f"{path}: {found.missing} questions are answered by other processes that have not ended.")
    return path


class _Loaded:
    """Loads a model once for its controls; the last of them, ``twin``, changes it."""

    def __init__(self) -> None:
        self.host: EvaluatedHost | None = None

    def __call__(self, arguments: HostArguments, data: DataSettings) -> EvaluatedHost:
        if self.host is None:
            self.host = EvaluatedHost(arguments, data)
        self.host.encoder = self.host.encoder_for(data)
        return self.host


def _judged(answers: Sequence[_Answers], told: list[str], seed: int, resamples: int) -> Comparison:
    every = [run for one in answers for run in one.runs]
    common = [key for key in every[0] if all(key in run for run in every)]
    if not common:
        raise BadRowsError("No question is answered on all sides: these are answers to different questions.")
    names = [f"{one.label} run {number}" for one in answers for number in range(1, len(one.runs) + 1)]
    told_of_questions = same_questions(list(zip(names, every, strict=True)), common)
    rows = [every[0][key] for key in common]
    groups = [group_of(row) for row in rows]
    found = Comparison(_protocol(answers), len(common), len(set(groups)), not_computed=list(told))
    found.notes = [*told_of_questions, *_notes(answers, common, rows)]
    values = {one.label: [[values_of(run[key]) for key in common] for run in one.runs] for one in answers}
    types = {"all": np.ones(len(rows), dtype=bool)}
    for kind in kinds(rows):
        members = np.array([type_of(row) == kind for row in rows])
        if not members.all():
            types[kind] = members
    for one, (kind, members), measure in itertools.product(answers, types.items(), MEASURES):
        table = _table(values[one.label], measure)
        there = members & ~np.isneginf(table).any(axis=0)
        if there.any():
            mean = float(table[:, there].mean())
            found.means.append(
                {
                    "side": one.name, "control": one.control, "type": kind, "measure": measure,
                    "mean": mean if np.isfinite(mean) else None, "questions": int(there.sum()), "runs": len(one.runs),
                }
            )  # fmt: skip
    for first, second in _pairs(answers):
        for (kind, members), measure in itertools.product(types.items(), MEASURES):
            tables = _table(values[first.label], measure), _table(values[second.label], measure)
            there = members & ~np.isneginf(np.concatenate(tables)).any(axis=0)
            if there.any():
                found.effects.append(_effect((first, second), kind, measure, tables, there, groups, seed, resamples))
    if len(found.effects) > 1:
        found.notes.append(
            f"{len(found.effects)} differences are tested, and the intervals are not corrected for that number."
        )
    return found


def _pairs(answers: Sequence[_Answers]) -> list[tuple[_Answers, _Answers]]:
    """Side against side, and each side against its controls."""
    sides = [one for one in answers if one.control == "on"]
    own = [(side, one) for side in sides for one in answers if one.name == side.name and one.control != "on"]
    return [*itertools.combinations(sides, 2), *own]


def _table(runs: Sequence[Sequence[Mapping[str, float]]], measure: str) -> Floats:
    """``[runs, rows]``; minus infinity where the measure does not apply, NaN where it is no number."""
    return np.array([[row.get(measure, -np.inf) for row in run] for run in runs], dtype=np.float64)


def _effect(
    pair: tuple[_Answers, _Answers], kind: str, measure: str, tables: tuple[Floats, Floats], there: Any,
    groups: Sequence[str], seed: int, resamples: int,
) -> Effect:  # fmt: skip
    first, second = (table[:, there] for table in tables)
    drawn = [group for group, inside in zip(groups, there, strict=True) if inside]
    mean, low, high, size = compared(
        first, second, drawn, same_runs=pair[0].name == pair[1].name, seed=seed, resamples=resamples
    )
    return Effect(
        pair[0].label, pair[1].label, kind, measure, (float(first.mean()), float(second.mean())), mean, low, high, size,
        int(there.sum()), len(set(drawn)), (len(first), len(second)),
    )  # fmt: skip


def _protocol(answers: Sequence[_Answers]) -> str:
    settings = [record["settings"] for one in answers for record in one.records if record]
    if not settings:
        return "files of answers that do not say how they were made"
    protocol = settings[0]["protocol"]
    controls = ", ".join(dict.fromkeys(f"{one.control} ({MEANING[one.control]})" for one in answers))
    return f"{protocol['generation']}, at most {protocol['max_new_tokens']} tokens; controls: {controls}"


def _notes(answers: Sequence[_Answers], common: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    sides = [one for one in answers if one.control == "on"]
    for one in answers:
        for number, run in enumerate(one.runs, 1):
            alone = [key for key in run if key not in set(common)]
            if alone:
                more = ", ..." if len(alone) > _SHOWN else ""
                notes.append(
                    f"PART OF THE QUESTIONS: {one.label} run {number} answers {len(alone):,} that another does not "
                    f"({', '.join(alone[:_SHOWN])}{more}); they are left out."
                )
    for one in sides:
        for number, record in enumerate(one.records, 1):
            name = f"{one.name} run {number}"
            if record is None:
                notes.append(f"{name}: no .run.json beside its answers says what gave them.")
                continue
            control = record["settings"].get("control", "on")
            if control != "on":
                notes.append(f"{name}: these answers were given under the control {control} ({MEANING[control]}).")
            left = record["about"].get("left_out") or []
            if left:
                notes.append(f"{name}: {len(left):,} rows were left out (first: {left[0]}).")
            model = record["settings"]["model"]
            trained = model["branch"] or model["adapter"] or record["about"].get("recipe")
            if trained:
                notes += overlap(name, rows, record["about"].get("trained_on"))
    notes += _cut_short(sides, common)
    if any(len(one.runs) == 1 for one in sides):
        notes.append("A side of one run has no spread of seeds: its intervals hold for this very run.")
    notes += _shown_differently(sides)
    return list(dict.fromkeys(notes))


def _cut_short(sides: Sequence[_Answers], common: Sequence[str]) -> list[str]:
    """Answers that ended because they had used all tokens they may have: they may be right up to there."""
    notes = []
    for one in sides:
        for number, (run, record) in enumerate(zip(one.runs, one.records, strict=True), 1):
            limit = record["settings"]["protocol"].get("max_new_tokens") if record else None
            cut = [key for key in common if limit and run[key].get("new_tokens", 0) >= limit]
            if cut:
                notes.append(
                    f"{one.name} run {number}: {len(cut):,} of {len(common):,} answers were cut at {limit} tokens "
                    f"(first: {cut[0]}). If whole answers matter, raise --max-new-tokens."
                )
    return notes


def _shown_differently(sides: Sequence[_Answers]) -> list[str]:
    """Settings of data and protocol that differ between runs, which then differ in more than the model."""
    records = [(one.name, record) for one in sides for record in one.records if record]
    settings = [
        (name, {**record["settings"], "pictures": record["about"].get("pixels") or {}}) for name, record in records
    ]
    notes = []
    for part in ("data", "pictures", "protocol"):
        for key in sorted({key for _, values in settings for key in values[part]}):
            found = {repr(values[part].get(key)): name for name, values in settings}
            if len(found) > 1:
                texts = ", ".join(f"{name} {value}" for value, name in found.items())
                notes.append(f"{part}.{key} differs between the sides ({texts}), not the models alone.")
    return notes
