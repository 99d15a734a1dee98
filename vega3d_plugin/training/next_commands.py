"""Commands that continue from a run, filled in so that they work as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipes.schema import TINY


def next_commands(folder: Path, checkpoint: Path, settings: Mapping[str, Any]) -> list[str]:
    """What can be done with a checkpoint. A run without a branch has nothing that ``vega3d info`` could show.

    Args:
        folder: the output folder of the run.
        checkpoint: one of its checkpoints.
        settings: of the recipe, in blocks.
    """
    host = _block(settings, "host").get("model")
    run, saved = shlex.quote(str(folder)), shlex.quote(str(checkpoint))
    # Where the settings are not known, as of a run that was killed early, there most likely is one.
    branch = settings.get("prior", "unknown") is not None
    lines = [f"vega3d info {saved}"] if branch else [f"vega3d report {run}"]
    if host is None:
        return lines
    model, data = shlex.quote(str(host)), _data(settings)
    if branch:
        return [
            *lines,
            f"vega3d look {saved} --video mine.mp4 --question 'Which chair is nearer?'",
            f"vega3d ablate {model} --branch {saved}{data} --out {run}/ablation.json",
        ]
    # Of a small host the checkpoint says whose it is, and without a branch nothing names a checkpoint.
    if host == TINY:
        return lines
    # A trained adapter lies beside the host's weights; of full tuning the checkpoint is the host.
    given = f"{model} --branch none --adapter {saved}" if settings.get("lora") else f"{saved} --branch none"
    return [*lines, f"vega3d answer {given}{data} --out {run}/answers.jsonl"]


def _data(settings: Mapping[str, Any]) -> str:
    """Rows that are held out, where there are any."""
    data = _block(settings, "data")
    files = data.get("eval_files") or ["held_out.json"]
    root = data.get("media_root")
    given = "".join(f" --data {shlex.quote(str(file))}" for file in files)
    return given + (f" --media-root {shlex.quote(str(root))}" if root else "")


def _block(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = settings.get(name)
    return block if isinstance(block, Mapping) else {}
