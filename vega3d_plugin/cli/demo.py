"""``vega3d demo``: does the branch help two small models, and do the parts keep their word?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from vega3d_plugin.evaluation.demo.compared import Compared


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the video, pictures, checkpoint and report.")] = Path(
        "demo_out"
    ),
    video: Annotated[Path | None, typer.Option(help="Your own video; the room is still rendered, to train on.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about --video.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Folder or hub id of a Qwen-VL model. Default: two small ones, trained here.")
    ] = None,
    prior: Annotated[str, typer.Option(help="A prior, see `vega3d ls priors`.")] = "small-world",
    pretrained: Annotated[str | None, typer.Option(help="Folder or hub id of the prior's weights.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of each training. Default: 120; with --host 200, of one question each."),
    ] = None,
    questions: Annotated[int, typer.Option(min=2, help="Questions about a room to train LoRA on.")] = 12,
    rooms: Annotated[
        int, typer.Option(min=4, help="Rooms to train the two small models on; half as many are held out.")
    ] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rooms, the questions and the training.")] = 0,
) -> None:
    """Does the branch help? Train two small models on questions about rooms, and see.

    By default everything is made offline. Rooms are rendered, so that each answer is known exactly. Two equal hosts
    (a tiny random Qwen2.5-VL) are trained on the same questions, one of them with the branch; the prior is
    `small-world`, a small trained video generator that lies in the package. Both are asked about rooms that they
    never saw. Then patch, LoRA, save, load and unpatch are checked. All of it is in OUT/report.html.

    With real weights there is no comparison, which would take hours (`vega3d ablate` makes it from a trained branch);
    the checks and the answer to your question are the same:

        vega3d demo --host Qwen/Qwen2.5-VL-3B-Instruct --prior wan2.1-t2v-1.3b
        vega3d demo --host ... --prior ... --video kitchen.mp4 --question "Is the kettle left of the sink?"
    """
    from rich.progress import Progress

    from vega3d_plugin.evaluation.demo.job import run
    from vega3d_plugin.evaluation.demo.outcome import Job
    from vega3d_plugin.evaluation.demo.page import answer_in_words
    from vega3d_plugin.hosts.loading import quiet_transformers
    from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning

    console = Console()
    job = Job(out, host, prior, pretrained, video, question, steps, questions, rooms, seed)
    # The libraries' own remarks (deprecations, label names) would bury ours.
    with warnings.catch_warnings(), quiet_transformers(), Progress(console=console, transient=True) as progress:
        warnings.simplefilter("ignore", FutureWarning)
        if prior == "tiny-wan":
            warnings.simplefilter("ignore", RandomWeightsWarning)
            console.print("[yellow]tiny-wan has random weights: it knows nothing about space.[/]")
        bar = progress.add_task("", total=None)

        def say(text: str) -> None:
            console.print(f"[dim]>[/] {escape(text)}")
            progress.reset(bar, total=None)

        report = run(job, say, lambda done, total: progress.update(bar, completed=done, total=total))

    if report.compared is not None:
        _show_answers(console, report.compared)
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
    if report.compared is not None:
        console.print(f"[bold]{escape(answer_in_words(report.compared))}[/]", highlight=False)
    if not report.passed:
        raise typer.Exit(1)


def _show_answers(console: Console, compared: Compared) -> None:
    """Accuracies by kind, and a few questions with what both models said."""
    from vega3d_plugin.evaluation.demo.compared import WHO

    arms = compared.arms
    title = "right answers on held-out rooms (95% intervals over rooms, one seed)"
    table = Table(title=title, title_justify="left")
    for column in ("questions", *(arm.name for arm in arms[:2]), "difference", "verdict"):
        table.add_column(column)
    for kind in (*compared.kinds, None):
        gain = compared.gain(kind)
        shares = [compared.share(arm, kind).percent for arm in arms[:2]]
        table.add_row(kind or "[bold]all[/]", *shares, gain.points, gain.verdict(WHO))
    console.print(table)
    for number in compared.shown():
        question = compared.test.questions[number]
        said = ", ".join(f"{arm.name}: {compared.said(arm, number)}" for arm in arms[:2])
        console.print(f"  {escape(question.text)} [bold]{escape(question.answer)}[/]; {escape(said)}", highlight=False)
