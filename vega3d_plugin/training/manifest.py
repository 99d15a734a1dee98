"""What a run was: written beside each checkpoint, compared before a run goes on, and looked for in output folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..branch.handle import get_handle, is_patched
from ..contracts.errors import TrainError
from ..hosts import installed as environment
from ..recipes.schema import RecipeSettings
from ..storage.claims import CLAIM_FILE
from ..storage.reading import read_json
from ..storage.record import RUN_FILE
from ..storage.writing import write_json
from .rows.files import Rows
from .whole import STATE, defect, file_list

FORMAT = 1
CHECKPOINT = "checkpoint-"
#: Checkpoints are written in a folder whose name begins like this, a run's own, then renamed.
WRITING = ".writing"
PACKAGES = (*environment.PACKAGES, "trl", "deepspeed", "safetensors", "numpy", "av", "decord", "qwen_vl_utils")
#: Settings that may change between a run and its continuation: where things are, how fast, how much is written.
FREE = {
    "env", "data.files", "data.eval_files", "data.media_root", "data.workers", "train.eval_steps", "train.report_rows",
    "prior.device", "prior.dtype", "prior.compile",
    "prior.offload", "prior.fast", "prior.max_tokens", "prior.chunk_frames", "prior.pretrained", "host.model",
    "train.output_dir", "train.save_steps", "train.save_total_limit", "train.logging_steps", "train.report_to",
    "train.per_device_batch_size", "train.gradient_checkpointing", "train.epochs", "train.max_steps",
    "train.deepspeed", "train.fsdp",
}  # fmt: skip


def make_manifest(
    name: str, recipe: RecipeSettings, model: Any, rows: Rows, skipped: int, world: int, held_out: Rows | None = None
) -> dict[str, Any]:
    """Recipe, versions, revisions, seeds, data and the state of git."""
    branch = get_handle(model).branch if is_patched(model) else None
    return {
        "format": FORMAT,
        "recipe": name,
        "settings": recipe.model_dump(mode="json"),
        "command": sys.argv,
        "seeds": {
            "train": recipe.train.seed if recipe.train else None,
            "prior": recipe.prior.seed if recipe.prior else None,
        },
        "revisions": {
            "host": {"model": recipe.host.model, "commit": getattr(model.config, "_commit_hash", None)},
            "prior": branch
            and {
                "name": branch.settings.prior.name,
                "source": branch.settings.prior.pretrained,
                "revision": branch.settings.prior.revision,
                "fingerprint": branch.prior.fingerprint,
            },
        },
        "data": {
            "files": _files(rows),
            "left_out": skipped,
            "held_out": [] if held_out is None else _files(held_out),
        },
        "processes": world,
        "versions": {p.name: p.version for p in environment.package_versions(PACKAGES) if p.version},
        "platform": environment.platform_versions(),
        "git": {"here": git_state(Path.cwd()), "library": git_state(Path(__file__).parent)},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether tracked files differ from it; None outside a repository or without git."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_manifest(folder: Path, manifest: Mapping[str, Any], **more: Any) -> None:
    """Write ``vega3d_run.json``."""
    write_json(folder / RUN_FILE, {**manifest, **more}, default=str)


def seal_checkpoint(folder: Path, manifest: Mapping[str, Any], step: int) -> None:
    """Write ``vega3d_run.json`` into a checkpoint that is complete, with a list of all its files."""
    write_manifest(folder, manifest, step=step, files=file_list(folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``vega3d_run.json``.

    Raises:
        TrainError: there is none, or it is damaged.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise TrainError(
            f"{folder} has no {RUN_FILE}, so it was not written by `vega3d train`. So its recipe is not known."
        )
    found = read_json(path, TrainError)
    if found.get("format") != FORMAT:
        raise TrainError(f"{path} was written by another version of this library; this one reads format {FORMAT}.")
    return found


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, oldest first; not those that were never finished."""
    # Trainer writes this file last.
    return [path for path in _numbered(folder) if (path / STATE).is_file()]


def _numbered(folder: Path) -> list[Path]:
    steps = {path.name.removeprefix(CHECKPOINT): path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir()}
    numbers = [step for step in steps if step.isascii() and step.isdecimal() and len(step) < 20]
    return [steps[step] for step in sorted(numbers, key=int)]


def check_output(folder: Path) -> None:
    """Refuse a folder that holds another run, or something else altogether.

    Raises:
        TrainError: says what was found.
    """
    found = checkpoints(folder)
    if found or (folder / RUN_FILE).is_file():
        run = _described(folder)
        last = f", last checkpoint {found[-1].name}" if found else ", no checkpoint yet"
        raise TrainError(
            f"{folder} holds another run ({run}{last}). Pass --resume to resume it, or set train.output_dir to a "
            "new folder."
        )
    _check_empty(folder)


def check_going_on(folder: Path, recipe: RecipeSettings, rows: Rows) -> None:
    """Refuse a folder to go on in, unless it holds this run or nothing.

    Raises:
        TrainError: says what was found, or lists every setting that differs.
    """
    found = checkpoints(folder)
    whole = [checkpoint for checkpoint in found if not defect(checkpoint, quick=True)]
    if found or (folder / RUN_FILE).is_file():
        _compare([folder, *found, *whole][-1], recipe, rows)
    else:
        _check_empty(folder)


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"train.output_dir: {folder} is a file.")
    mine = (CLAIM_FILE, WRITING)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    others = sorted(name for name in names if not name.startswith(mine))
    if others:
        raise TrainError(
            f"{folder} is not empty (found {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}). Set "
            "train.output_dir to a new folder."
        )


def find_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in an output folder; None when a run has not come that far."""
    found = checkpoints(folder)
    return found[-1] if found else None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The last checkpoint that a run can go on from, and what is wrong with those after it.

    Raises:
        TrainError: there are checkpoints, and none is whole.
    """
    wrong: list[str] = []
    for checkpoint in reversed(_numbered(folder)):
        problem = defect(checkpoint)
        if not problem:
            return checkpoint, wrong
        wrong.append(f"{checkpoint} is damaged: {problem}")
    if wrong:
        raise TrainError(
            f"No checkpoint in {folder} is complete:\n  " + "\n  ".join(wrong) + "\nStart a new run in another "
            "train.output_dir."
        )
    return None, []


def check_whole(checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint of which something is missing or cut short.

    Raises:
        TrainError: says what, and names the last whole checkpoint beside it.
    """
    problem = defect(checkpoint)
    if not problem:
        return
    others = [path for path in checkpoints(checkpoint.parent) if path != checkpoint and not defect(path, quick=True)]
    advice = f"Resume from {others[-1]}." if others else "No other checkpoint beside it is complete."
    raise TrainError(f"{checkpoint} is damaged: {problem}. A run cannot resume from it. {advice}")


def check_same_run(checkpoint: Path, recipe: RecipeSettings, rows: Rows) -> None:
    """Compare a checkpoint's recipe and data with those of this run.

    Raises:
        TrainError: lists every setting that differs, with both values.
    """
    if not (checkpoint / STATE).is_file():
        last = find_checkpoint(checkpoint)
        instead = "" if last is None else f" It holds checkpoints; the last is {last}."
        raise TrainError(f"{checkpoint} is no checkpoint of a trainer: it has no {STATE}.{instead}")
    _compare(checkpoint, recipe, rows)


def _compare(checkpoint: Path, recipe: RecipeSettings, rows: Rows) -> None:
    saved = read_manifest(checkpoint)
    different = list(_differences(saved.get("settings", {}), recipe.model_dump(mode="json")))
    try:
        there, here = saved.get("data", {}).get("files", []), _files(rows)
        if [(f["rows"], f["bytes"]) for f in there] != [(f["rows"], f["bytes"]) for f in here]:
            different.append(f"data: {_size(there)} there, {_size(here)} here")
    except (AttributeError, KeyError, TypeError):
        raise TrainError(f"{checkpoint / RUN_FILE} is damaged: its data.files names no files.") from None
    if different:
        raise TrainError(
            f"{checkpoint} is of another recipe ({saved.get('recipe')}):\n  " + "\n  ".join(different) + "\n"
            "Resume with the recipe it was made with, or start a new run in another train.output_dir."
        )


def step_of(checkpoint: Path) -> int:
    """Optimiser steps that were made before a checkpoint was written.

    Raises:
        TrainError: it cannot be read.
    """
    step = read_json(checkpoint / STATE, TrainError).get("global_step")
    if not isinstance(step, int):
        raise TrainError(f"{checkpoint / STATE} cannot be read: its global_step is {step!r:.40}.")
    return step


def clear_unfinished(folder: Path, name: str = f"{WRITING}*") -> None:
    """Remove what interrupted saves have left. A checkpoint that was whole, but not yet in its place, is put there.

    Args:
        folder: output folder, claimed by this run.
        name: of the folder in it that is cleared; default: those of all runs.
    """
    for left in folder.glob(name):
        for checkpoint in left.glob(f"{CHECKPOINT}*"):
            target = folder / checkpoint.name
            if (checkpoint / RUN_FILE).is_file() and not target.exists() and not defect(checkpoint, quick=True):
                checkpoint.rename(target)
        shutil.rmtree(left, ignore_errors=True)


def rank() -> int:
    """Number of this process, as launchers tell it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, as launchers tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _described(folder: Path) -> str:
    try:
        return f"recipe {read_manifest(folder).get('recipe')}"
    except TrainError:
        return f"without {RUN_FILE}"


def _files(rows: Rows) -> list[dict[str, Any]]:
    return [{"path": str(f.path), "rows": len(f), "bytes": f.path.stat().st_size} for f in rows.files]


def _size(files: list[dict[str, Any]]) -> str:
    return f"{sum(f['rows'] for f in files)} rows in files of {sum(f['bytes'] for f in files)} bytes"


def _differences(saved: Any, here: Any, path: str = "") -> Iterator[str]:
    if path in FREE:
        return
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key in sorted({*saved, *here}):
            yield from _differences(saved.get(key), here.get(key), f"{path}.{key}" if path else str(key))
    elif saved != here:
        yield f"{path}: {saved!r} there, {here!r} here"
