"""``vega3d train``: from a recipe to checkpoints, with HF Trainer or TRL."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from tqdm import tqdm

from .output import err, listed, live_warnings, out, print_json, print_pairs, print_table, table

if TYPE_CHECKING:
    from ..training.job import Job
    from ..training.plan import Plan

#: Checking fewer rows than this takes no time worth a bar.
QUIET_ROWS = 2000


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (`vega3d ls recipes`), or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.learning_rate=1e-4.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; train and write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the folder's last checkpoint.")] = False,
    resume_from: Annotated[Path | None, typer.Option(metavar="DIR", help="Resume from this checkpoint.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out, count and list them.")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Feature store, folder or URL: each clip is encoded once.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan or the result, machine-readable.")] = False,
) -> None:
    """Train a host of transformers as a recipe says: patched, with LoRA or in full.

    Rows: LLaVA-style JSON (`conversations`, with <image> and <video>) or chat
    messages; videos, images, lists of views. The loss covers answers only.

    \b
      vega3d train qwen_vl/smoke --dry-run
      vega3d recipes cp qwen_vl/lora_spatial_reasoning mine.yaml
      vega3d train mine.yaml data.files=rows.jsonl data.media_root=null
      torchrun --nproc-per-node 8 -m vega3d_plugin.train mine.yaml

    The run leaves `report.html` in its folder: losses, the prior's share, and
    answers before and after. With data.eval_files the loss is validated, and
    the best checkpoint is named and kept.

    Each checkpoint is whole or not there, with `vega3d_run.json` beside the
    weights: recipe, versions, seeds, git. Load it with
    `vega3d.load_pretrained(model, checkpoint)`.
    """
    from ..contracts.errors import BadRowWarning, Vega3dError
    from ..training.job import make_job
    from ..training.manifest import find_checkpoint, rank

    first = rank() == 0
    with live_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("always", BadRowWarning)
        job = make_job(
            recipe,
            overrides or [],
            resume=resume,
            resume_from=resume_from,
            skip_bad_rows=skip_bad_rows,
            store=store,
            keep_output=dry_run,
            progress=_bar if first else iter,
        )
        if first:
            _left_out([str(row) for row in job.bad])
        if dry_run:
            if first:
                _plan(job, as_json)
            return
        if first:
            _where_it_begins(job, resume)
        try:
            last = job.run()
        except KeyboardInterrupt:
            whole = find_checkpoint(job.output)
            if first:
                err.print()
                _interrupted(job.output, whole)
            raise SystemExit(130) from None
        except Vega3dError:
            # The message would otherwise stand behind the progress bar, in the same line.
            if first:
                err.print()
            raise
    if first:
        _trained(job, last, as_json)


def _trained(job: Job, last: Path, as_json: bool) -> None:
    from ..training.next_commands import next_commands
    from ..training.report import FILE
    from ..training.validation import best_checkpoint

    late = job.reported()
    if len(late) > len(job.bad):
        _left_out(late)
    best = best_checkpoint(job.output)
    report = job.output / FILE
    if as_json:
        named = None if best is None else {"checkpoint": str(best.checkpoint), "eval_loss": best.loss}
        made = str(report) if report.is_file() else None
        print_json({"checkpoint": str(last), "best": named, "report": made, "left_out": late})
        return
    out.print(Text.assemble("Trained: ", (str(last), "bold")), soft_wrap=True)
    if best is not None:
        text = f", validation loss {best.loss:.4f}"
        out.print(Text.assemble("Best:    ", (str(best.checkpoint), "bold"), text), soft_wrap=True)
    if report.is_file():
        out.print(Text.assemble("Report:  ", (str(report), "bold")), soft_wrap=True)
    for line in next_commands(job.output, last, job.recipe.to_dict()):
        out.print(f"  {line}", markup=False, soft_wrap=True, style="dim")


def _where_it_begins(job: Job, resume: bool) -> None:
    if resume and job.checkpoint is None:
        err.print(f"There is no checkpoint in {job.output} yet; beginning at step 0.", markup=False, soft_wrap=True)
    if job.finished:
        err.print(
            f"Nothing is left to do: {job.checkpoint} is the end of this run of {job.steps:,} steps. For more, "
            "raise train.epochs or train.max_steps.",
            markup=False,
            soft_wrap=True,
        )


def _bar(rows: Sequence[int]) -> Any:
    return tqdm(rows, desc="Checking rows", unit="row") if len(rows) >= QUIET_ROWS else rows


def _left_out(bad: Sequence[str]) -> None:
    if not bad:
        return
    err.print(Text(f"{len(bad)} bad row{'s' if len(bad) > 1 else ''} left out:", style="yellow"))
    for row in bad[:10]:
        err.print(Text(f"  {row}"), soft_wrap=True)
    if len(bad) > 10:
        err.print(Text(f"  ... and {len(bad) - 10} more, in bad_rows.txt of the output folder"))


def _interrupted(output: Path, whole: Path | None) -> None:
    from ..training.report import FILE

    if whole is None:
        err.print("Interrupted before the first checkpoint.")
    else:
        err.print(f"Interrupted. {whole} is complete. Resume with --resume.", markup=False, soft_wrap=True)
    if (output / FILE).is_file():
        err.print(f"What there is so far: {output / FILE}", markup=False, soft_wrap=True)


def _plan(job: Job, as_json: bool) -> None:
    from dataclasses import asdict

    from ..training.plan import make_plan

    plan = make_plan(job)
    if as_json:
        print_json(asdict(plan))
        return
    print_pairs({**plan.facts, "steps": f"{plan.steps:,}"})
    out.print()
    _parts(plan)
    _memory(plan)
    _batch(plan)


def _parts(plan: Plan) -> None:
    made = table("part", "mode", "parameters", "trainable", "in", "learning rate", whole=("part", "mode"))
    for part in plan.parts:
        rate = "" if part.learning_rate is None else f"{part.learning_rate:g}"
        made.add_row(part.name, part.mode, f"{part.total:,}", f"{part.trains:,}", listed(part.dtypes), rate)
    total, trains = sum(p.total for p in plan.parts), sum(p.trains for p in plan.parts)
    made.add_row(Text("total", style="bold"), "", f"{total:,}", f"{trains:,}", "", "")
    print_table(made)


def _memory(plan: Plan) -> None:
    made = table("memory on one device", "", whole=("memory on one device",))
    for name, size in plan.memory.items():
        made.add_row(name, _bytes(size))
    made.add_row(Text("total", style="bold"), _bytes(sum(plan.memory.values())))
    print_table(made)


def _batch(plan: Plan) -> None:
    made = table("first batch", "shape", "dtype", whole=("first batch",))
    for name, (shape, dtype) in plan.batch.items():
        made.add_row(name, Text(str(list(shape))), dtype)
    print_table(made)
    print_pairs(
        {
            "tokens": ", ".join(map(str, plan.lengths)),
            "tokens in the loss": ", ".join(map(str, plan.learned)),
            "first answer": plan.answer,
        }
    )


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
