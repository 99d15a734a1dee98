"""Were the rows of an evaluation in the training? A score on such rows says nothing about others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contracts.errors import RowError, TrainError
from ...training.rows.files import Rows

_CONTENT = ("conversations", "messages", "prompt", "completion", "image", "images", "video", "videos", "scene")


def overlap(name: str, rows: Iterable[Mapping[str, Any]], trained_on: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """What is to be told about rows that a run was trained on.

    Args:
        name: of the run, for messages.
        rows: of the evaluation, or lines of a file of answers, which hold them.
        trained_on: files of the training, as ``vega3d_run.json`` lists them; None: not known.
    """
    if trained_on is None:
        return [f"{name}: its checkpoint does not say what it was trained on, so overlap was not checked."]
    wanted = {found for row in rows if (found := _digest(row))}
    told = []
    for file in trained_on:
        path = Path(os.path.normpath(str(file.get("path", ""))))
        if not path.is_file():
            told.append(f"{name}: {path} is not here, so its overlap with these questions was not checked.")
            continue
        shared = len(wanted & _digests(path))
        if shared:
            told.append(
                f"{name} was trained on {shared:,} of these {len(wanted):,} rows ({path}): its scores there say "
                "nothing about other questions."
            )
    return told


def _digests(path: Path) -> set[str]:
    found: set[str] = set()
    try:
        rows = Rows([path])
    except TrainError:
        return found
    for number in range(len(rows)):
        try:
            found.add(_digest(rows[number]))
        except RowError:
            continue
    return found


def _digest(row: Mapping[str, Any]) -> str:
    content = {key: row[key] for key in _CONTENT if row.get(key) is not None}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest() if content else ""
