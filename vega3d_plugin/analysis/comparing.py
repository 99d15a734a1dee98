"""Several priors in one table, and whether what they score goes with what they are worth downstream."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..errors import AnalysisError, near_misses
from .intervals import Interval, correlation_interval, pearson, spearman
from .results import CorrespondenceResult, PriorScores, Record, Result

if TYPE_CHECKING:
    from PIL.Image import Image

#: Downstream scores by prior, or a CSV file with the columns ``prior``, ``score`` and, if it matters, ``context``.
Downstream = Mapping[str, float] | str | Path
_LARGEST = 1 << 22  # bytes of a CSV file
_FEWEST = 3  # priors that a correlation needs


class Correlation(Record):
    """How a figure goes with the downstream score. Attributes: ``value`` and the ends of its 95% interval over priors;
    None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval:
        """As an interval."""
        value, low, high = (math.nan if v is None else v for v in (self.value, self.low, self.high))
        return Interval(value, low, high)


class Comparison(Result):
    """What :func:`vega3d.analysis.compare` found.

    Attributes:
        kind, format: of the file.
        result: all priors, on the scenes that all of them were judged on.
        labels: what each of its priors is called.
        downstream_name: what the downstream score is; empty where there is none.
        downstream: of each prior, None where it is not known or the prior is not the one that stands for its name.
        pearson, spearman: by figure; empty where fewer than three priors have a downstream score.
        notes: what was left out.
    """

    kind: Literal["comparison"] = "comparison"
    format: Literal[1] = 1
    result: CorrespondenceResult
    labels: tuple[str, ...]
    downstream_name: str = ""
    downstream: tuple[float | None, ...] = ()
    pearson: dict[str, Correlation] = Field(default_factory=dict)
    spearman: dict[str, Correlation] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Comparison:
        count = len(self.result.priors)
        if len(self.labels) != count or (self.downstream and len(self.downstream) != count):
            raise ValueError("labels or downstream scores are not one for each prior")
        return self

    def table(self) -> str:
        """All priors, the best first, with their twins and downstream scores, then the correlations, as text."""
        from .tables import comparison_table

        return comparison_table(self)

    def plot(self, path: str | Path | None = None) -> Image:
        """The scatter plot, or without downstream scores the priors' figures; written to ``path`` (PNG) if given."""
        from .charts import save
        from .tables import comparison_chart

        picture = comparison_chart(self)
        return picture if path is None else save(picture, path)


def compare(
    results: Sequence[CorrespondenceResult | str | Path],
    downstream: Downstream | None = None,
    *,
    context: str | None = None,
    column: str | None = None,
) -> Comparison:
    """Put the priors of several results into one table.

    Args:
        results: of one protocol with the same options, or files that hold them. Priors are compared on the scenes
            that all of them were judged on.
        downstream: scores of what the priors were used for, by the prior's name.
        context: whose figures stand for a prior that was judged in several; default: its first. A column ``context``
            of the CSV says it row by row.
        column: of the CSV that holds the score; default: the only other one.

    Raises:
        AnalysisError: no results, ones that cannot be compared, or downstream scores that cannot be read or used.
    """
    read = [each if isinstance(each, CorrespondenceResult) else CorrespondenceResult.read(each) for each in results]
    merged, notes = _merged(read)
    labels = _labels(merged.priors)
    if downstream is None:
        return Comparison(result=merged, labels=labels, notes=tuple(notes))
    name, scores = _downstream(downstream, column)
    chosen, more = _chosen(merged.priors, scores, context)
    notes += more
    known = [k for k, value in enumerate(chosen) if value is not None]
    found: dict[str, dict[str, Correlation]] = {"pearson": {}, "spearman": {}}
    if len(known) < _FEWEST:
        notes.append(f"{len(known)} priors have a downstream score; a correlation needs {_FEWEST}.")
    else:
        y = [value for value in chosen if value is not None]
        for figure in merged.figures:
            x = [merged.priors[k].figure(figure).value for k in known]
            for kind, of in (("pearson", pearson), ("spearman", spearman)):
                found[kind][figure] = _correlation(correlation_interval(x, y, of))
    return Comparison(
        result=merged,
        labels=labels,
        downstream_name=name,
        downstream=tuple(chosen),
        pearson=found["pearson"],
        spearman=found["spearman"],
        notes=tuple(notes),
    )


def _merged(results: Sequence[CorrespondenceResult]) -> tuple[CorrespondenceResult, list[str]]:
    if not results:
        raise AnalysisError("There is no result to compare. Give the files that `vega3d analyse correspondence` wrote.")
    first = results[0]
    for other in results[1:]:
        ours, theirs = _rules(first), _rules(other)
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                raise AnalysisError(
                    f"Results of different rules cannot be compared: {key} is {ours.get(key)!r} for "
                    f"{first.priors[0].label}, {theirs.get(key)!r} for {other.priors[0].label}. Judge both alike."
                )
    priors: list[PriorScores] = []
    for scores in (each for result in results for each in result.priors):
        if scores not in priors:
            priors.append(scores)
    shared = set.intersection(*({scene.fingerprint for scene in scores.scenes} for scores in priors))
    if not shared:
        raise AnalysisError(
            "The results share no scene, so their priors cannot be compared: "
            + "; ".join(f"{scores.label} on {', '.join(s.scene for s in scores.scenes[:4])}" for scores in priors[:4])
            + ". Judge all priors on the same scenes and views."
        )
    every = {scene.fingerprint for scores in priors for scene in scores.scenes}
    notes = []
    if len(every) > len(shared):
        notes.append(
            f"Compared on the {len(shared)} scenes that all were judged on; {len(every) - len(shared)} are not."
        )
    # In one order, so that differences are paired.
    cut = []
    for scores in priors:
        scenes = sorted((s for s in scores.scenes if s.fingerprint in shared), key=lambda s: s.fingerprint)
        cut.append(scores.model_copy(update={"scenes": tuple(scenes)}))
    return first.model_copy(update={"priors": tuple(cut)}), notes


def _rules(result: CorrespondenceResult) -> dict[str, Any]:
    options = {key: value for key, value in result.options.items() if key != "controls"}
    return {"protocol": result.protocol, **options}


def _labels(priors: Sequence[PriorScores]) -> tuple[str, ...]:
    """Names with contexts; where several are alike, with the settings in which they differ."""
    labels = []
    for scores in priors:
        alike = [other for other in priors if other.label == scores.label]
        keys = sorted({key for other in alike for key in other.settings})
        differing = [key for key in keys if len({repr(other.settings.get(key)) for other in alike}) > 1]
        more = ", ".join(f"{key} {scores.settings.get(key)}" for key in differing)
        if len(alike) > 1 and not more:
            more = scores.fingerprint[:8]
        labels.append(f"{scores.label}, {more}" if more else scores.label)
    return tuple(labels)


def _chosen(
    priors: Sequence[PriorScores], scores: Mapping[tuple[str, str | None], float], context: str | None
) -> tuple[list[float | None], list[str]]:
    """The downstream score of each prior; of one judged in several contexts only one counts."""
    chosen: list[float | None] = []
    counted: set[str] = set()
    for prior in priors:
        value = scores.get((prior.prior, prior.context))
        if value is None and prior.prior not in counted and context in (None, prior.context):
            value = scores.get((prior.prior, None))
            counted |= {prior.prior} if value is not None else set()
        chosen.append(value)
    notes = []
    names = [prior.prior for prior in priors]
    for name, wanted in scores:
        if (name, wanted) not in {(p.prior, c) for p in priors for c in (p.context, None)}:
            hint = near_misses(name, names)
            notes.append(f"No result for {name}{f' ({wanted})' if wanted else ''}, which has a downstream score.{hint}")
    repeated = sorted({name for name in counted if names.count(name) > 1})
    if repeated:
        which = f"context {context}" if context else "first context"
        notes.append(f"{', '.join(repeated)}: judged more than once; the {which} stands for the prior.")
    if not any(value is not None for value in chosen):
        raise AnalysisError(
            f"No downstream score is of a prior that was judged. Judged: {', '.join(dict.fromkeys(names))}. "
            f"Scored: {', '.join(dict.fromkeys(name for name, _ in scores)) or 'none'}."
        )
    return chosen, notes


def _downstream(given: Downstream, column: str | None) -> tuple[str, dict[tuple[str, str | None], float]]:
    if isinstance(given, Mapping):
        return "downstream score", {(name, None): float(value) for name, value in given.items()}
    path = Path(given)
    try:
        if path.stat().st_size > _LARGEST:
            raise AnalysisError(f"{path} has {path.stat().st_size} bytes; downstream scores take {_LARGEST} at most.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} cannot be read as CSV: {error}.") from None
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise AnalysisError(f"{path} cannot be read as CSV: {error}.") from None
    columns = [name for name in (rows[0] if rows else {}) if isinstance(name, str)]
    if "prior" not in columns:
        raise AnalysisError(
            f"{path} needs a first line with the columns 'prior' and 'score', found: {', '.join(columns) or 'nothing'}."
        )
    name = _column(path, columns, column)
    scores: dict[tuple[str, str | None], float] = {}
    for number, row in enumerate(rows, start=2):
        key = ((row["prior"] or "").strip(), (row.get("context") or "").strip() or None)
        if key in scores:
            raise AnalysisError(f"{path}, line {number}: {key[0]!r} is there twice.")
        scores[key] = _number(path, number, name, row[name])
    return name, scores


def _column(path: Path, columns: Sequence[str], wanted: str | None) -> str:
    others = [name for name in columns if name not in ("prior", "context")]
    if wanted is not None and wanted not in others:
        raise AnalysisError(
            f"{path} has no column {wanted!r}.{near_misses(wanted, others)} It has: {', '.join(others) or 'none'}."
        )
    if wanted is None and len(others) != 1:
        raise AnalysisError(
            f"{path} has {len(others)} columns beside 'prior': {', '.join(others) or 'none'}. Say which is the score "
            "with column= (--column)."
        )
    return wanted or others[0]


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float((text or "").strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AnalysisError(f"{path}, line {line}: {column} is {text!r}, expected a number.")
    return value


def _correlation(interval: Interval) -> Correlation:
    value, low, high = (v if math.isfinite(v) else None for v in (interval.value, interval.low, interval.high))
    return Correlation(value=value, low=low, high=high)
