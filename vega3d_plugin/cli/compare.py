"""``vega3d compare``: runs against each other and against their controls."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .answer import progress
from .options import BatchSize, Device, Limit, MediaRoot, Pretrained, SkipBadRows, Store
from .output import err, out, print_json, print_table, table, yellow_warnings
from .targets import check_target, write

if TYPE_CHECKING:
    from ..evaluation.comparison.run import Comparison
    from ..evaluation.verdicts import Effect


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="NAME=DIR,DIR, a DIR, answers.jsonl or NAME=none.")
    ],
    data: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Rows, .json or .jsonl; repeatable.")] = None,
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For answers, comparison.json and report.html.")
    ] = Path("compare_out"),
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The host; default: what the checkpoints were trained from.")
    ] = None,
    controls: Annotated[
        str, typer.Option(help="Controls of runs with a branch, separated by commas; none: no controls.")
    ] = "off,zeroed,shuffled,twin",
    pretrained: Pretrained = None,
    media_root: MediaRoot = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a video; default: as in the training of each.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    likelihood: Annotated[bool, typer.Option(help="Also compute the likelihood of the expected answers.")] = True,
    skip_bad_rows: SkipBadRows = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 10_000,
    store: Store = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Compare runs question by question: which is better, by how much, how sure.

    A RUN is a checkpoint with or without a branch (LoRA, full, a saved branch),
    an output folder of `vega3d train`, a file of `vega3d answer`, or none: the
    host alone. Several seeds of one side go under one name.

    \b
      vega3d compare with=out/a1,out/a2 without=out/b1,out/b2 --data test.jsonl
      vega3d compare ours=out/a1 base=none --data test.jsonl --controls off,twin
      vega3d compare ours.jsonl baseline.jsonl

    Runs with a branch also answer under controls: the branch off, its tokens
    zero (zeroed), features of other pictures (shuffled), a prior with
    untrained weights (twin). A branch that uses what the prior saw beats all.

    Intervals are of the paired bootstrap: pictures and seeds are drawn. A
    difference whose interval holds 0, or that is too small to matter, is
    "no difference shown".
    """
    from ..analysis.report import write_page
    from ..contracts.errors import UnknownNameError
    from ..evaluation.answering.controls import CONTROLS
    from ..evaluation.comparison.page import comparison_page
    from ..evaluation.comparison.run import compare as run
    from ..evaluation.comparison.sides import read_sides
    from ..hosts.loading import quiet_transformers

    asked = [] if controls == "none" else [name.strip() for name in controls.split(",")]
    for name in asked:
        if name not in CONTROLS[1:]:
            raise UnknownNameError("control", name, CONTROLS[1:])
    check_target(folder / "comparison.json", ".json")
    common = {
        "prior_pretrained": pretrained, "store": store, "device": device, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    given = {"frames": frames, "media_root": media_root, "skip_bad_rows": skip_bad_rows or None}
    with yellow_warnings(), quiet_transformers(), progress() as start:
        # Others' remarks would bury ours.
        warnings.simplefilter("ignore", FutureWarning)
        found = run(
            read_sides(runs, model, **common), data or (), folder,
            # In the order in which one model can take them: the twin comes last.
            controls=[name for name in CONTROLS if name in asked],
            data={key: value for key, value in given.items() if value is not None},
            limit=limit, batch_size=batch_size, likelihood=likelihood, seed=seed, resamples=resamples, start=start,
        )  # fmt: skip
    values = {**found.to_dict(), "runs": runs, "data": data}
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write(folder / "comparison.json", lambda path: path.write_text(text, encoding="utf-8"))
    write_page(comparison_page(found, " against ".join(run.partition("=")[0] for run in runs)), folder / "report.html")
    if as_json:
        print_json(values)
        return
    _print(found)
    out.print(Text(f"Everything: {folder / 'report.html'}, {folder / 'comparison.json'}", style="dim"), soft_wrap=True)


def _print(found: Comparison) -> None:
    out.print(
        Text(f"{found.questions:,} questions about {found.groups:,} pictures. {found.protocol}", style="bold"),
        soft_wrap=True,
    )
    out.print()
    whole = [effect for effect in found.effects if effect.type == "all"]
    by_type = [effect for effect in found.effects if effect.type != "all"]
    print_table(_effects(whole, "All questions"))
    if by_type:
        print_table(_effects(by_type, "By type of question"))
    out.print(Text("effect: the difference in standard deviations over questions", style="dim"))
    for note in [*found.notes, *found.not_computed]:
        err.print(Text(f"Note: {note}", style="yellow"), soft_wrap=True)


def _effects(effects: list[Effect], title: str) -> Any:
    typed = any(effect.type != "all" for effect in effects)
    columns = [*(["type"] if typed else []), "first", "second", "measure", "difference", "95% interval", "effect"]
    made = table(*columns, "questions", "verdict", title=title, whole=["measure", "difference", "95% interval"])
    for effect in effects:
        names = [*([effect.type] if typed else []), effect.first, effect.second, effect.measure]
        made.add_row(*names, *effect.shown, f"{effect.questions:,}", Text(effect.verdict, style=style(effect.verdict)))
    return made


def style(verdict: str) -> str:
    """The colour of a verdict."""
    return "green" if " is better" in verdict else "red" if " is worse" in verdict else "dim"
