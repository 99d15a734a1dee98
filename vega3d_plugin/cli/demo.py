"""``vega3d demo``: the whole job on one video, with a check for every promise."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the video, pictures, checkpoint and report.")] = Path(
        "demo_out"
    ),
    video: Annotated[Path | None, typer.Option(help="Your own video; the room is still rendered, to train on.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about --video.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Folder or hub id of a Qwen-VL model. Default: a tiny random one, no download.")
    ] = None,
    prior: Annotated[str, typer.Option(help="A prior, see `vega3d ls priors`.")] = "tiny-wan",
    pretrained: Annotated[str | None, typer.Option(help="Folder or hub id of the prior's weights.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, one question each.")] = 200,
    questions: Annotated[int, typer.Option(min=2, help="Questions about the room to train on.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the room, the questions and the training.")] = 0,
) -> None:
    """Do the whole job once: patch, train, answer, save, load, unpatch, and check each promise.

    By default everything is built offline: a fly-through of a small 3D room, a tiny random Qwen2.5-VL and the toy
    prior `tiny-wan`. These know nothing, so the answer is worth nothing; the checks are.

    With real weights:

        vega3d demo --host Qwen/Qwen2.5-VL-3B-Instruct --prior wan2.1-t2v-1.3b
        vega3d demo --host ... --prior ... --video kitchen.mp4 --question "Is the kettle left of the sink?"
    """
    from vega3d_plugin.evaluation.demo.job import Job, run
    from vega3d_plugin.hosts.loading import quiet_transformers
    from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning

    console = Console()
    job = Job(out, host, prior, pretrained, video, question, steps, questions, seed)
    # The libraries' own remarks (deprecations, label names) would bury ours.
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore", FutureWarning)
        if prior == "tiny-wan":
            warnings.simplefilter("ignore", RandomWeightsWarning)
            console.print(
                "[yellow]tiny-wan has random weights: it knows nothing about space. This shows that the parts work.[/]"
            )
        report = run(job, lambda text: console.print(f"[dim]>[/] {escape(text)}"))

    table = Table(title="vega3d demo", title_justify="left")
    table.add_column("check")
    table.add_column("")
    table.add_column("seen")
    for check in report.checks:
        mark = {True: "[green]PASS[/]", False: "[red]FAIL[/]", None: ""}[check.passed]
        table.add_row(escape(check.name), mark, escape(check.seen))
    console.print(table)
    for name, path in report.files.items():
        console.print(f"  {escape(name)}: {escape(str(path))}", soft_wrap=True, highlight=False)
    console.print(
        f"{'[green]All checks passed' if report.passed else '[red]Some checks failed'}[/] in {report.seconds:.0f} s."
    )
    if not report.passed:
        raise typer.Exit(1)
