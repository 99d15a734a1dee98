"""``vega3d ablate``: does the branch help, on the user's own data?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .compare import style
from .options import (
    Adapter,
    Data,
    Device,
    Frames,
    Limit,
    MediaRoot,
    Model,
    Pretrained,
    Processor,
    SkipBadRows,
    Store,
    VideoAs,
)
from .output import err, out, print_json, print_table, table, yellow_warnings
from .targets import check_target, write

if TYPE_CHECKING:
    from ..evaluation.ablation import Ablation, Difference

WHAT = {
    "base": "the host alone",
    "patched": "as trained",
    "off": "branch switched off",
    "zeroed": "generative tokens zero",
}
MEASURES = {"exact": "exact match", "nll": "NLL of the answer"}


def ablate(
    model: Model,
    data: Data,
    branch: Annotated[
        str | None, typer.Option(metavar="DIR", help="A saved branch or a checkpoint; default: MODEL.")
    ] = None,
    adapter: Adapter = None,
    pretrained: Pretrained = None,
    processor: Processor = None,
    media_root: MediaRoot = None,
    frames: Frames = None,
    video_as: VideoAs = None,
    limit: Limit = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a generated answer.")] = 16,
    generate: Annotated[bool, typer.Option(help="Generate answers, for exact match; else likelihoods only.")] = True,
    skip_bad_rows: SkipBadRows = False,
    store: Store = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 10_000,
    device: Device = None,
    report: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write everything as .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Score your own questions without the branch, with it, and with its two controls.

    \b
      base     MODEL alone, without branch and adapter
      patched  as trained
      off      the branch switched off, the adapter still on
      zeroed   the generative tokens zero: does it use what they say?

    For each answer: exact match of what is generated (greedily), and the
    negative log-likelihood of the expected answer. Differences of patched
    to each control come with a 95% interval (paired bootstrap over pictures).
    Where --branch is the checkpoint of a whole trained host, that host is
    used for all but the base.

    \b
      vega3d ablate Qwen/Qwen2.5-VL-3B-Instruct --data mine.json --branch out/checkpoint-500
    """
    from ..evaluation.ablation import ablate as run
    from ..hosts.loading import quiet_transformers

    if report is not None:
        check_target(report, ".json")
    given = {"frames": frames, "video_as": video_as, "media_root": media_root, "skip_bad_rows": skip_bad_rows or None}
    values = {key: value for key, value in given.items() if value is not None}
    with yellow_warnings(), quiet_transformers(), _progress() as start:
        # Others' remarks would bury ours.
        warnings.simplefilter("ignore", FutureWarning)
        found = run(
            model, data, branch=branch, adapter=adapter, pretrained=pretrained, processor=processor, data=values,
            limit=limit, max_new_tokens=max_new_tokens, generated=generate, seed=seed, resamples=resamples,
            device=device, store=store, start=start,
        )  # fmt: skip
    values = found.to_dict()
    if report is not None:
        write(
            report, lambda path: path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        )
    if as_json:
        print_json(values)
        return
    rows = values["rows"]
    counted = f"{len(found.answers)} answers in {rows} row{'s' if rows != 1 else ''}"
    print_table(_scores(found, f"{model}: {counted}"))
    print_table(_differences(found.differences))
    for warning in found.warnings:
        err.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    for row in found.skipped:
        err.print(Text(f"Left out: {row}", style="dim"), soft_wrap=True)
    if report is not None:
        out.print(Text(f"Everything, answer by answer: {report}", style="dim"), soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[int], Callable[[str], None]]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:

        def start(total: int) -> Callable[[str], None]:
            task = progress.add_task("base", total=total)
            return lambda what: progress.update(task, advance=1, description=what)

        yield start


def _scores(found: Ablation, title: str) -> Table:
    made = table("", "what", "exact match", "NLL per answer", "per token", title=title, whole=["", "exact match"])
    for name, what in WHAT.items():
        exact = found.mean(name, "exact")
        made.add_row(
            Text(name, style="bold" if name == "patched" else ""),
            what,
            "-" if exact is None else f"{exact:.1%}",
            f"{found.mean(name, 'nll'):.4f}",
            f"{found.mean(name, 'token_nll'):.4f}",
        )
    for column in made.columns[2:]:
        column.justify = "right"
    return made


def _differences(differences: list[Difference]) -> Table:
    made = table("patched minus", "measure", "difference", "95% interval", "effect", "verdict", title="Does it help?")
    for difference in differences:
        percent = difference.measure == "exact"
        made.add_row(
            difference.control,
            MEASURES[difference.measure],
            _signed(difference.mean, percent),
            "-"
            if difference.low is None
            else f"{_signed(difference.low, percent)} to {_signed(difference.high, percent)}",
            "-" if difference.size is None else f"{difference.size:+.2f}",
            Text(difference.verdict, style=style(difference.verdict)),
        )
    return made


def _signed(value: Any, percent: bool) -> str:
    return f"{value:+.1%}" if percent else f"{value:+.4f}"
