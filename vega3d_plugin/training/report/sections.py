"""The sections of a run's report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ...analysis.report.blocks import (
    Block,
    Card,
    Cards,
    Commands,
    Details,
    Facts,
    Finding,
    Findings,
    Gallery,
    Prose,
    Table,
)
from ...analysis.report.page import Section
from ...contracts.printable import one_line
from ...contracts.yaml_text import dump_yaml
from ..next_commands import next_commands
from ..validation import LOSS
from .curves import KINDS, loss_lines, rate_lines, share_lines
from .pictures import frame_pictures, share_rows
from .reading import Run

#: A validation loss this much above its lowest, relative to how far it had fallen, is told.
_RISEN = 0.1
_ANSWERS = {
    "expected": "expected",
    "base": "before training: the host alone",
    "trained": "trained, without a branch",
    "patched": "trained, with the branch",
    "off": "trained, branch switched off",
}


def last_value(run: Run, name: str) -> float | None:
    """The last value of a name in the log."""
    points = run.logged.points(name)
    return points[-1][1] if points else None


def share_now(run: Run) -> float | None:
    """The last share of the prior, the mean over the kinds of clips that were logged."""
    values = [value for kind in KINDS if (value := last_value(run, f"share/{kind}/generative")) is not None]
    return sum(values) / len(values) if values else None


def state_of(run: Run) -> Finding:
    """How far the run has come, and how it ended."""
    step, steps = run.logged.step, run.steps
    far = f"step {step:,}" + (f" of {steps:,}" if steps else "")
    loss = last_value(run, "loss")
    if loss is not None and not math.isfinite(loss):
        text = f"The training loss is {loss} at {far}: from there on the weights are of no use."
        return Finding(text, "bad", "not finite")
    if run.logged.how == "finished":
        return Finding(f"The run finished at {far}.", "good", "finished")
    if run.logged.how == "interrupted":
        text = f"The run was interrupted at {far}. `vega3d train ... --resume` resumes it from its last checkpoint."
        return Finding(text, "open", "interrupted")
    if run.logged.how == "failed":
        return Finding(f"The run failed at {far}: {run.logged.reason}", "bad", "failed")
    return Finding(f"The log ends at {far}: the run is still running, or was killed.", "open", "not ended")


def conclusions(run: Run) -> Section:
    """What happened, in sentences."""
    items = [state_of(run), *_of_validation(run), *_of_share(run)]
    text = "A loss does not show whether the branch makes answers better: `vega3d compare` measures it."
    items.append(Finding(text, "note", "mind"))
    return Section("What happened", [Findings(items)])


def _of_validation(run: Run) -> list[Finding]:
    points = [(step, loss) for step, loss in run.logged.points(LOSS) if math.isfinite(loss)]
    if not points:
        text = "There is no validation loss. Set data.eval_files to rows that are held out."
        return [Finding(text, "open", "unknown")]
    (first, start), (last, now) = points[0], points[-1]
    low_step, low = min(points, key=lambda point: point[1])
    found = [Finding(f"Validation loss: {start:.4f} at step {first:,.0f}, {now:.4f} at step {last:,.0f}.")]
    if run.best is not None:
        found.append(
            Finding(f"Lowest at a checkpoint: {run.best.loss:.4f}, `{run.best.checkpoint.name}`.", "good", "best")
        )
    if now - low > _RISEN * max(start - low, 1e-6):
        text = (
            f"It has risen since step {low_step:,.0f}, where it was {low:.4f}: the later steps fit the training rows."
        )
        found.append(Finding(text, "bad", "overfits"))
    return found


def _of_share(run: Run) -> list[Finding]:
    share, scale = share_now(run), last_value(run, "branch/a")
    if share is None:
        if run.setting("prior", "name") is None:
            return [Finding("The recipe has no prior: this is a baseline without a branch.")]
        return []
    scaled = "" if scale is None else f", a = {scale:.4g}"
    if share == 0:
        return [Finding(f"The prior's share of a token is 0{scaled}: the branch changes nothing.", "open", "unused")]
    return [Finding(f"The prior's share of a token is {share:.4g}, the host's {1 - share:.4g}{scaled}.")]


def cards(run: Run) -> Cards:
    """The figures at the top."""
    loss, validation = last_value(run, "loss"), last_value(run, LOSS)
    items = [
        Card("optimiser steps", f"{run.logged.step:,}", f"of {run.steps:,}" if run.steps else ""),
        Card("training loss", "none" if loss is None else f"{loss:.4f}", "last logged"),
    ]
    if validation is not None:
        note = f"lowest at a checkpoint: {run.best.loss:.4f}" if run.best else ""
        items.append(Card("validation loss", f"{validation:.4f}", note))
    share, scale = share_now(run), last_value(run, "branch/a")
    if share is not None:
        note = "effective, mean over tokens" + ("" if scale is None else f"; a = {scale:.4g}")
        items.append(Card("share of the prior", f"{share:.4g}", note))
    items.append(Card("time", _time(run.logged.seconds)))
    return Cards(items)


def curves(run: Run) -> Section:
    """Losses and learning rates."""
    return Section("Loss", [loss_lines(run.logged), rate_lines(run.logged)])


def shares(run: Run) -> Section | None:
    """How much of the tokens is the prior's, over the steps and over the frames."""
    charts: list[Block] = list(share_lines(run.logged))
    pictures = share_rows(run)
    if not charts and pictures is None:
        return None
    lead = "How much of each fused token comes from the prior. It says what goes in, not whether the answers need it."
    return Section("Share of the prior", [*charts, *([] if pictures is None else [pictures])], lead)


def answers(run: Run) -> Section | None:
    """What was answered to a few rows, with their pictures."""
    if not run.rows:
        return None
    step, last = run.looks[-1] if run.looks else (0, [])
    blocks: list[Block] = []
    for number, row in enumerate(run.rows):
        found = {**row, **(last[number] if number < len(last) else {})}
        lines = [(what, str(found[key])) for key, what in _ANSWERS.items() if found.get(key) is not None]
        table = Table(
            ["", "answer"], [(what, _said(said)) for what, said in lines], [0], str(row.get("name", "")), numeric=False
        )
        blocks += [Prose([str(row.get("question", ""))]), Gallery(frame_pictures(run, row), small=True), table]
    whose = "rows that are held out" if run.held_out else "rows that are trained on (there are none held out)"
    when = f"after step {step:,}" if run.looks else "nothing has been trained yet"
    lead = f"{len(run.rows)} {whose}, {when}. At most 32 tokens each, the most likely one each time."
    return Section("Answers", blocks, lead)


def _said(text: str) -> str:
    return one_line(text) or "(nothing)"


def plan(run: Run) -> Section | None:
    """What trains, and what memory it was thought to take."""
    if not run.plan:
        return None
    parts: Sequence[Mapping[str, Any]] = run.plan.get("parts", [])
    table = Table(
        ["part", "mode", "parameters", "trainable", "learning rate"],
        [
            (
                str(part["name"]),
                str(part["mode"]),
                f"{part['total']:,}",
                f"{part['trains']:,}",
                "" if part["learning_rate"] is None else f"{part['learning_rate']:g}",
            )
            for part in parts
        ],
        caption="Parts of the model",
    )
    memory = Table(
        ["on one device", "size"],
        [(name, _size(size)) for name, size in run.plan.get("memory", {}).items()],
        caption="Memory, as estimated before the run",
    )
    facts = Facts([(name, str(value)) for name, value in run.plan.get("facts", {}).items()])
    return Section("Plan", [facts, table, memory])


def versions(run: Run) -> Section | None:
    """Versions, revisions, git, and the whole recipe."""
    if not run.manifest:
        return None
    pairs = [(name, str(version)) for name, version in (run.manifest.get("versions") or {}).items()]
    pairs += [(name, str(value)) for name, value in (run.manifest.get("platform") or {}).items()]
    for name, state in (run.manifest.get("git") or {}).items():
        if state:
            pairs.append((f"git, {name}", f"{state['commit'][:12]}{', with changes' if state['dirty'] else ''}"))
    for name, value in (run.manifest.get("revisions") or {}).items():
        for key, text in (value or {}).items():
            if text is not None:
                pairs.append((f"{name}: {key}", str(text)))
    recipe = dump_yaml(dict(run.settings)).splitlines() if run.settings else []
    blocks: list[Block] = [Facts(pairs)]
    if recipe:
        blocks.append(Details("The recipe, with all its settings", [Commands(recipe)]))
    return Section("Versions and settings", blocks)


def next_steps(run: Run) -> Section:
    """Commands that continue from here."""
    checkpoint = (run.best.checkpoint if run.best else run.last) or run.folder / "checkpoint-STEP"
    again = f"vega3d report {shlex.quote(str(run.folder))}"
    lines = [again, *(line for line in next_commands(run.folder, checkpoint, run.settings) if line != again)]
    if run.logged.how in ("interrupted", ""):
        lines.insert(0, f"vega3d train {run.manifest.get('recipe', 'RECIPE')} train.output_dir={run.folder} --resume")
    return Section("Next", [Commands(lines)])


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
