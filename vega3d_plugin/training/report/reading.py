"""What a run has left behind, whether it ended well, was interrupted or killed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...contracts.errors import ReportError
from ...storage.reading import read_json
from ...storage.record import RUN_FILE
from ..manifest import CHECKPOINT, checkpoints, find_checkpoint
from ..run_log import FILES, Logged, read_log
from ..samples import ROWS
from ..validation import Best, best_checkpoint

PLAN = "plan.json"
_STEP = re.compile(r"step-(\d{6,})\.json")


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: of the run.
        logged: its log.
        manifest: recipe, versions, data; empty where it was not written.
        plan: parts, memory and steps; empty where it was not written.
        rows: the rows that were looked at, with the answers before training.
        held_out: whether those are rows that were not trained on.
        looks: what was found at each step that was looked at, in order: step and an entry for each row.
        best: the checkpoint with the lowest validation loss.
        last: the last checkpoint.
    """

    folder: Path
    logged: Logged
    manifest: Mapping[str, Any]
    plan: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    held_out: bool
    looks: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]
    best: Best | None
    last: Path | None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, as planned."""
        steps = self.plan.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the recipe, in blocks."""
        settings = self.manifest.get("settings")
        return settings if isinstance(settings, Mapping) else {}

    def setting(self, block: str, key: str) -> Any:
        """One setting; None where it is not known."""
        values = self.settings.get(block)
        return values.get(key) if isinstance(values, Mapping) else None


def read_run(folder: str | Path) -> Run:
    """Read what there is of a run.

    Args:
        folder: the output folder of ``vega3d train``, or a checkpoint in it.

    Raises:
        ReportError: it holds no run, or a file in it is damaged; the message names it.
    """
    folder = Path(folder).expanduser()
    if folder.name.startswith(CHECKPOINT) and (folder.parent / FILES).is_dir():
        folder = folder.parent
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder. Name the output folder of a run: train.output_dir of its recipe.")
    if not (folder / FILES).is_dir() and not (folder / RUN_FILE).is_file():
        raise ReportError(
            f"{folder} holds no run of `vega3d train` that leaves a report: it has neither {FILES}/ nor {RUN_FILE}."
        )
    logged = read_log(folder)
    rows = _read(folder / FILES / ROWS)
    return Run(
        folder,
        logged,
        _read(folder / RUN_FILE),
        _read(folder / FILES / PLAN),
        _entries(rows, folder / FILES / ROWS),
        bool(rows.get("held_out")),
        _looks(folder / FILES),
        best_checkpoint(folder) if checkpoints(folder) else None,
        find_checkpoint(folder),
    )


def _looks(folder: Path) -> list[tuple[int, list[Mapping[str, Any]]]]:
    found = []
    for path in sorted(folder.glob("step-*.json")):
        matched = _STEP.fullmatch(path.name)
        if matched:
            found.append((int(matched[1]), _entries(_read(path), path)))
    return sorted(found, key=lambda look: look[0])


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, ReportError) if path.is_file() else {}


def _entries(values: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    rows = values.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ReportError(f"{path} is damaged: its `rows` must be a list of objects. Delete it, and report again.")
    return rows
