"""``vega3d answer``: a model's answers to rows of questions, as a file that ``vega3d score`` and ``compare`` read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.text import Text

from .options import (
    Adapter,
    BatchSize,
    BranchOrNone,
    Data,
    Device,
    Frames,
    HostDtype,
    Limit,
    MediaRoot,
    Model,
    Pretrained,
    Processor,
    Shard,
    SkipBadRows,
    Store,
    VideoAs,
)
from .output import err, out, yellow_warnings
from .targets import check_target

if TYPE_CHECKING:
    from ..evaluation.answering.run import Answered


def answer(
    model: Model,
    data: Data,
    target: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file of answers, .jsonl.")],
    branch: BranchOrNone = None,
    adapter: Adapter = None,
    control: Annotated[str, typer.Option(help="on, off, zeroed, shuffled or twin.")] = "on",
    pretrained: Pretrained = None,
    processor: Processor = None,
    media_root: MediaRoot = None,
    frames: Frames = None,
    video_as: VideoAs = None,
    batch_size: BatchSize = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Also compute the likelihood of the expected answer (nll, in nats).")
    ] = False,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    shard: Shard = None,
    store: Store = None,
    device: Device = None,
    dtype: HostDtype = "auto",
) -> None:
    """Answer every question in rows of data, greedily.

    \b
      vega3d answer Qwen/Qwen2.5-VL-3B-Instruct --branch out/checkpoint-500 \\
          --data vsibench.jsonl --batch-size 8 --out answers.jsonl
      vega3d score vsibench answers.jsonl

    Controls (--control) show what the branch contributes:

    \b
      on        as trained
      off       the branch switched off, the adapter still on
      zeroed    the generative tokens zero
      shuffled  the features of another question's pictures (one at a time)
      twin      the prior with untrained weights

    The same command resumes a run that was stopped or killed; no question
    is answered twice. With other settings it is an error that shows both.
    Several processes share the questions; the last one writes FILE:

    \b
      torchrun --nproc-per-node 8 --no-python vega3d answer MODEL ...
      vega3d answer MODEL ... --shard 1/2     and elsewhere --shard 2/2
    """
    from ..contracts.errors import UnknownNameError
    from ..evaluation.answering.controls import CONTROLS
    from ..evaluation.answering.run import answer as run
    from ..evaluation.harness_host import HostArguments
    from ..hosts.loading import quiet_transformers

    check_target(target, ".jsonl")
    if control not in CONTROLS:
        raise UnknownNameError("control", control, CONTROLS)
    place = process_of(shard)
    arguments = HostArguments.parse(
        {
            "pretrained": model, "branch": branch, "adapter": adapter, "prior_pretrained": pretrained,
            "processor": processor, "store": store, "device": device or own_device(), "dtype": dtype,
            "max_new_tokens": max_new_tokens,
        }
    )  # fmt: skip
    given = {"frames": frames, "video_as": video_as, "media_root": media_root, "skip_bad_rows": skip_bad_rows or None}
    with yellow_warnings(), quiet_transformers(), progress() as start:
        # Others' remarks would bury ours.
        warnings.simplefilter("ignore", FutureWarning)
        found = run(
            arguments, data, target, control=control, batch_size=batch_size, likelihood=likelihood, limit=limit,
            data={key: value for key, value in given.items() if value is not None}, shard=place, start=start,
        )  # fmt: skip
    _tell(found, control)


def _tell(found: Answered, control: str) -> None:
    for row in found.left_out:
        err.print(Text(f"Left out: {row}", style="yellow"), soft_wrap=True)
    if found.found:
        err.print(Text(f"Resumed: {found.found:,} of {found.share:,} questions were answered before.", style="dim"))
    if found.missing:
        out.print(
            f"This process is done. {found.missing:,} of {found.questions:,} questions wait for the other processes; "
            f"the last one writes {found.out}.",
            soft_wrap=True,
        )
        return
    what = "already there" if not found.share else f"{found.questions:,} questions"
    out.print(Text(f"{found.out}: {what}, control {control}, greedy", style="bold"), soft_wrap=True)
    out.print(Text(f"Score them: vega3d score BENCHMARK {found.out}", style="dim"), soft_wrap=True)


def process_of(given: str | None) -> tuple[int, int]:
    """The process, from 0, and how many there are: as given, else as a launcher says."""
    from ..training.manifest import rank, world_size

    if given is None:
        return rank(), world_size()
    one, _, all_of = given.partition("/")
    if not (one.isdecimal() and all_of.isdecimal() and 1 <= int(one) <= int(all_of)):
        raise typer.BadParameter(f"{given!r}: expected I/N with I from 1 to N, such as 2/4.", param_hint="--shard")
    return int(one) - 1, int(all_of)


def own_device() -> str | None:
    """The GPU of this process, where a launcher started several; else the default."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None


class Start(Protocol):
    """Starts a bar: over how many questions, how many of them are done, and whose answers they are."""

    def __call__(self, total: int, found: int, what: str = ...) -> Callable[[int], None]:
        """Returns what is called with the number of questions of each batch."""


@contextmanager
def progress() -> Iterator[Start]:
    """A bar over questions: call what it yields with their number and how many are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:

        def start(total: int, found: int, what: str = "Answering") -> Callable[[int], None]:
            task = bar.add_task(what, total=total, completed=found)
            return lambda count: bar.update(task, advance=count)

        yield start
