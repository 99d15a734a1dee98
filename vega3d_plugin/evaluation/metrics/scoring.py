"""From predictions and references to a score."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts.errors import UnknownNameError
from .benchmark import Benchmark, Item, Protocol, Quantity
from .benchmarks.cvbench import Blink, CVBench
from .benchmarks.multi3drefer import Multi3DRefer
from .benchmarks.scan2cap import Scan2Cap
from .benchmarks.scanqa import ScanQA
from .benchmarks.scanrefer import ScanRefer
from .benchmarks.sparbench import SPARBench
from .benchmarks.sqa3d import SQA3D
from .benchmarks.vsibench import VSIBench
from .bootstrap import Bootstrap, Ints, interval
from .errors import ScoreError
from .matching import Coverage, bring_together, merged
from .reading import given_rows, read_rows
from .results import Figure, ItemScore, Score
from .rows import Row

#: All benchmarks by name.
BENCHMARKS: dict[str, Benchmark] = {
    made.name: made
    for made in (
        ScanRefer(), Multi3DRefer(), Scan2Cap(), ScanQA(), SQA3D(), VSIBench(), CVBench(), SPARBench(), Blink(),
    )
}  # fmt: skip
#: Rows in a file, or handed over.
Source = str | Path | Sequence[Mapping[str, Any]]
Tick = Callable[[str], None]


def list_benchmarks() -> list[str]:
    """Names that :func:`score` takes."""
    return sorted(BENCHMARKS)


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, however it is spelt.

    Raises:
        UnknownNameError: none; the message names close matches.
    """
    plain = name.casefold().replace("-", "").replace("_", "").replace(" ", "")
    if plain not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    return BENCHMARKS[plain]


def get_protocol(benchmark: Benchmark, name: str | None) -> Protocol:
    """Whose scorer; the benchmark's first for None.

    Raises:
        UnknownNameError: none of that name.
    """
    if name is None:
        return benchmark.protocols[0]
    for protocol in benchmark.protocols:
        if protocol.name == name:
            return protocol
    raise UnknownNameError(f"protocol of {benchmark.title}", name, [p.name for p in benchmark.protocols])


def score(
    benchmark: str,
    predictions: Source,
    references: Source | Sequence[str | Path] | None = None,
    as_: str | None = None,
    *,
    leave_out: Collection[str] = (),
    count_missing: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    by: str = "question",
    tick: Tick = lambda what: None,
) -> Score:
    """Score answers to a benchmark's questions.

    Args:
        benchmark: a name of :func:`list_benchmarks`.
        predictions: rows with answers: a ``.json`` or ``.jsonl`` file, or dictionaries.
        references: the questions, likewise, in one or several files that complete each other; None: each row of the
            predictions holds its own ground truth, and nobody knows whether all questions are there.
        as_: whose way of scoring, a protocol of the benchmark. Default: ``vega3d``, what the released scripts print,
            where there is one, else the benchmark's own.
        leave_out: kinds of rows that do not stop the scoring: ``missing``, ``unknown``, ``duplicate``, ``unusable``,
            ``mismatch`` (see :data:`~.matching.KINDS`).
        count_missing: score questions without an answer as wrong, in place of leaving them out.
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
        by: what the bootstrap draws: ``question``, or ``scene``.
        tick: called with the name of each figure.

    Raises:
        UnknownNameError: no such benchmark, protocol or kind.
        ScoreError: files or rows that cannot be used, or that do not fit together.
    """
    chosen = get_benchmark(benchmark)
    protocol = get_protocol(chosen, as_)
    if by not in ("question", "scene"):
        raise UnknownNameError("unit of the bootstrap", by, ("question", "scene"))
    rows = _read(predictions, "predictions")
    items, coverage = bring_together(
        chosen, protocol, rows, _references(chosen, references), leave_out=leave_out, count_missing=count_missing
    )
    bootstrap = Bootstrap(resamples, seed, by)
    return make_score(chosen, protocol, items, coverage, bootstrap, tick)


def make_score(
    benchmark: Benchmark,
    protocol: Protocol,
    items: Sequence[Item],
    coverage: Coverage,
    bootstrap: Bootstrap,
    tick: Tick = lambda what: None,
) -> Score:
    """Score items, at least one."""
    evaluation = benchmark.evaluate(items, protocol)
    groups = groups_of(items, bootstrap)
    figures = []
    for quantity in evaluation.quantities:
        tick(f"{quantity.type} {quantity.measure}")
        figures.append(_figure(benchmark, protocol, quantity, bootstrap, groups))
    shown = [f for kind, measure in benchmark.headline for f in figures if (f.type, f.measure) == (kind, measure)]
    summary = ", ".join(f"{f.measure} {f.shown}{_brackets(f)}" for f in shown)
    return Score(
        benchmark.name,
        benchmark.title,
        protocol,
        tuple(figures),
        tuple(
            ItemScore(item.question.id, item.question.type, values)
            for item, values in zip(items, evaluation.values, strict=True)
        ),
        coverage,
        bootstrap,
        (*evaluation.notes, *_left_out(coverage)),
        f"{coverage}. {benchmark.title} as {protocol.name}: {summary}",
        evaluation,
        tuple(items),
    )


def groups_of(items: Sequence[Item], bootstrap: Bootstrap) -> Ints | None:
    """Number of each question's scene ``[N]``, or None where questions are drawn. Raises :class:`ScoreError`."""
    if bootstrap.by == "question":
        return None
    scenes = [item.question.scene for item in items]
    if not all(scenes):
        place = next(item.question.where for item in items if not item.question.scene)
        raise ScoreError(f"{place}: no scene, so that whole scenes cannot be drawn. Draw questions (--by question).")
    return np.asarray(np.unique(scenes, return_inverse=True)[1], dtype=np.int64)


def library_version() -> str:
    """Version of the installed package, or ``0+unknown``; here, since the module of saved records imports torch."""
    try:
        return version("vega3d-plugin")
    except PackageNotFoundError:
        return "0+unknown"


def resampled(quantity: Quantity, bootstrap: Bootstrap, groups: Ints | None, name: str) -> np.ndarray[Any, Any]:
    """The quantity over each resample ``[R]``; none where there are fewer than two things to draw."""
    assert quantity.estimator is not None
    if not bootstrap.resamples or bootstrap.units(quantity.members, groups) < 2:
        return np.zeros(0)
    estimator = quantity.estimator.over(quantity.members)
    draws = bootstrap.counts(name, quantity.members, quantity.strata, groups)
    return np.concatenate([estimator.estimate(counts) for counts in draws])


def _figure(
    benchmark: Benchmark, protocol: Protocol, quantity: Quantity, bootstrap: Bootstrap, groups: Ints | None
) -> Figure:
    count, why, value = int(quantity.members.sum()), quantity.why, None
    low = high = None
    if quantity.estimator is not None:
        value = float(quantity.estimator.estimate(quantity.members[None].astype(np.float64))[0])
        if np.isfinite(value):
            low, high = interval(resampled(quantity, bootstrap, groups, f"{quantity.type}/{quantity.measure}"))
        else:
            value, why = None, "not computed: it has no finite value on these answers"
    signature = "|".join(
        [
            benchmark.name, f"as:{protocol.name}", quantity.measure, f"type:{quantity.type}", protocol.form,
            f"n:{count}", f"ci:bootstrap,by-{bootstrap.by},{bootstrap.resamples},seed{bootstrap.seed}",
            f"vega3d:{library_version()}",
        ]
    )  # fmt: skip
    return Figure(quantity.type, quantity.measure, value, low, high, count, quantity.unit, signature, why)


def _brackets(figure: Figure) -> str:
    return "" if figure.low is None else f" [{figure.interval}]"


def _left_out(coverage: Coverage) -> list[str]:
    return [
        f"left out as {kind}: {count:,} (first: {'; '.join(first)})"
        for kind, (count, first) in coverage.left_out.items()
    ]


def _read(source: Source, name: str) -> tuple[list[Row], list[str]]:
    return read_rows(source) if isinstance(source, str | Path) else given_rows(list(source), name)


def _references(
    benchmark: Benchmark, source: Source | Sequence[str | Path] | None
) -> tuple[list[Row], list[str]] | None:
    if source is None:
        return None
    if isinstance(source, str | Path):
        files = [read_rows(source)]
    elif source and all(isinstance(one, str | Path) for one in source):
        files = [read_rows(one) for one in source if isinstance(one, str | Path)]
    else:
        files = [given_rows(list(source), "references")]
    rows, bad = merged(files, benchmark.id)
    return [Row(row.values, row.where, reference=True) for row in rows], bad
