"""``vega3d score``: from answers to the columns of a benchmark's table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .output import err, out, print_json, print_table, stacked, table
from .targets import check_target, write

if TYPE_CHECKING:
    from ..evaluation.metrics import Comparison, Difference, Figure, Score


def _list(asked: bool) -> None:
    """Print all benchmarks with their protocols and rows, and end."""
    if not asked:
        return
    from ..evaluation.metrics import get_benchmark, list_benchmarks

    made = table("benchmark", "protocol", "whose", title="Benchmarks", whole=["benchmark", "protocol"])
    for name in list_benchmarks():
        benchmark = get_benchmark(name)
        for place, protocol in enumerate(benchmark.protocols):
            made.add_row(
                Text(name if not place else "", style="bold"), protocol.name, stacked(protocol.source, protocol.differs)
            )
        made.add_row("", Text("rows", style="dim"), Text(benchmark.rows, style="dim"))
    made.caption = "the first protocol of a benchmark is the default of --as"
    made.caption_justify = "left"
    print_table(made)
    raise typer.Exit


def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="A name of --list, such as scanqa.")],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Rows with answers, .jsonl or .json.")],
    references: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The benchmark's questions; repeatable, for a second part."),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="PROTOCOL", help="Protocol of the scoring; default: vega3d, if there is one."),
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(metavar="OTHER", help="Other answers to compare with; repeatable.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="missing, unknown, duplicate, unusable or mismatch; repeatable."),
    ] = None,
    count_missing: Annotated[
        bool, typer.Option("--count-missing", help="Count questions without an answer as wrong.")
    ] = False,
    by: Annotated[str, typer.Option(metavar="UNIT", help="Intervals draw each question, or each scene.")] = "question",
    resamples: Annotated[int, typer.Option(min=0, max=1_000_000, help="Of the bootstrap; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    per_item: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what each question scored, .jsonl.")
    ] = None,
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write everything as .json; -: to standard output.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List benchmarks, protocols and rows; exit.")
    ] = False,
) -> None:
    """Score answers to a benchmark's questions, each figure with its interval.

    Every figure says whose scorer it follows (--as): the released scripts
    (vega3d), the benchmark's own (official), LEO's (leo) or lmms-eval's. They
    give different figures for the same answers.

    \b
    PREDICTIONS are rows, one JSON object a line, in one of these forms:
      {"sample_id": 0, "pred_response": "a chair", "gt_response": ...,
       "question_type": "what"}             as the released scripts write
      {"id": 0, "prediction": "a chair"}    with --references
      a file of lmms-eval --log_samples
    FILE holds the questions: the benchmark's own file, or the released
    scripts' *_llava_style.json. Without it each row is its own question,
    and nobody knows whether all are there. --list names all keys.

    \b
      vega3d score vsibench answers.jsonl
      vega3d score scanqa answers.jsonl --as leo --references val.json
      vega3d score scanrefer ours.jsonl --compare baseline.jsonl
    """
    from ..evaluation.answering.parts import described_run
    from ..evaluation.metrics import compare as compared
    from ..evaluation.metrics import score as run

    report = None if as_json in (None, "-") else Path(str(as_json))
    for path, suffix in ((per_item, ".jsonl"), (report, ".json")):
        if path is not None:
            check_target(path, suffix)
    options: dict[str, Any] = {
        "leave_out": tuple(leave_out or ()), "count_missing": count_missing, "by": by, "resamples": resamples,
        "seed": seed,
    }  # fmt: skip
    files = [predictions, *(compare or [])]
    with err.status("Reading") as status:
        scores = [
            run(benchmark, file, references or None, as_, **options, tick=lambda what: status.update(f"Scoring {what}"))
            for file in files
        ]
        runs = [described_run(file) for file in files]
        status.update("Comparing")
        common = "missing" in options["leave_out"]
        comparisons = [compared(scores[0], other, common=common) for other in scores[1:]]
    values = {**scores[0].to_dict(), "answers": runs[0]}
    if compare:
        pairs = zip(compare, scores[1:], runs[1:], comparisons, strict=True)
        values["comparisons"] = [
            {"file": str(file), "headline": other.headline, "answers": about, **found.to_dict()}
            for file, other, about, found in pairs
        ]
    if per_item is not None:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in scores[0].per_item()]
        write(per_item, lambda path: path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8"))
    if report is not None:
        text = json.dumps(values, indent=2, allow_nan=False)
        write(report, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
    if as_json == "-":
        print_json(values)
        return
    _print_score(scores[0])
    _print_run(predictions, runs[0])
    for file, other, about, comparison in zip(files[1:], scores[1:], runs[1:], comparisons, strict=True):
        _print_comparison(predictions, file, other, comparison)
        _print_run(file, about)
    for path, what in ((per_item, "Question by question"), (report, "Everything")):
        if path is not None:
            out.print(Text(f"{what}: {path}", style="dim"), soft_wrap=True)


def _print_score(found: Score) -> None:
    _print_headline(found)
    out.print()
    made = table("type", "measure", "score", "95% interval", "questions", whole=["type", "score", "95% interval"])
    before = None
    for figure in found.figures:
        made.add_row(
            Text("" if figure.type == before else figure.type, style="bold"),
            figure.measure,
            _value(figure),
            figure.interval,
            f"{figure.count:,}",
        )
        before = figure.type
    for column in (made.columns[2], made.columns[4]):
        column.justify = "right"
    print_table(made)
    for why in dict.fromkeys(figure.why for figure in found.figures if figure.why):
        measures = dict.fromkeys(figure.measure for figure in found.figures if figure.why == why)
        err.print(Text(f"{', '.join(measures)}: {why}.", style="yellow"), soft_wrap=True)
    for note in found.notes:
        err.print(Text(f"Note: {note}", style="yellow"), soft_wrap=True)
    out.print(Text(found.protocol_line, style="dim"))
    out.print(Text(f"Signature: {found.figures[0].signature}", style="dim"), soft_wrap=True)


def _print_run(file: Path, run: Mapping[str, Any] | None) -> None:
    """Which model gave the answers, under which control; what nobody has written down is said to be unknown."""
    if run is None:
        text = f"{file.name}: which model, branch and control gave these answers is not recorded."
    else:
        branch = run["branch"]
        parts = [f"control {run['control']}", f"host {run['host']}"]
        parts.append("no branch" if branch is None else "branch " + " ".join(str(v) for v in branch.values() if v))
        parts += ["with an adapter"] if run["adapter"] else []
        parts += [f"{run['left_out']} questions left out"] if run["left_out"] else []
        text = f"{file.name}: {', '.join(parts)}; run {run['run']}"
    out.print(Text(text, style="dim"), soft_wrap=True)


def _print_headline(found: Score) -> None:
    style = "bold yellow" if found.headline.startswith("INCOMPLETE") else "bold"
    out.print(Text(found.headline, style=style), soft_wrap=True)


def _print_comparison(first: Path, second: Path, other: Score, comparison: Comparison) -> None:
    out.print()
    out.print(Text(f"{second}: ", style="bold"), end="", soft_wrap=True)
    _print_headline(other)
    out.print(Text(f"{first} minus {second}: {comparison.headline}", style="bold"), soft_wrap=True)
    out.print()
    # Long names of tasks need the width, and have one measure each.
    several = len({found.type for found in comparison.differences}) < len(comparison.differences)
    columns = ["type", *(["measure"] if several else []), "difference", "95% interval", "verdict"]
    made = table(*columns, whole=["type", "difference", "95% interval", "verdict"])
    before = None
    for found in comparison.differences:
        # What follows the colon stands below the table.
        verdict = Text(found.verdict.partition(":")[0], _style(found))
        kind = Text("" if found.type == before else found.type, style="bold")
        made.add_row(kind, *([found.measure] if several else []), found.shown, found.interval, verdict)
        before = found.type
    made.columns[columns.index("difference")].justify = "right"
    out.print(made)
    out.print(Text("higher, lower: the interval excludes 0; no difference shown: it contains 0", style="dim"))
    out.print()
    for note in comparison.notes:
        err.print(Text(f"Note: {note}", style="yellow"), soft_wrap=True)


def _value(figure: Figure) -> Text:
    return Text(figure.shown) if figure.value is not None else Text("not computed", style="yellow")


def _style(found: Difference) -> str:
    start = found.verdict.partition(":")[0]
    return {"higher": "green", "lower": "red"}.get(start, "dim")
