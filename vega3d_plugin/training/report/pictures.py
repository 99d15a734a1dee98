"""Pictures of the rows that a run has looked at: the frames, and the prior's share over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...analysis.pictures import heated
from ...analysis.report.blocks import Picture, PictureRow, PictureRows
from ...contracts.errors import ReportError
from ...scenes.pixel_limits import opened_picture
from ..run_log import FILES
from ..samples import evenly
from .reading import Run

#: Steps whose shares are shown beside each other, and frames of a row among them.
COLUMNS, FRAMES = 4, 2


def frame_pictures(run: Run, row: Mapping[str, Any]) -> list[Picture]:
    """The frames of a row."""
    return [
        Picture.of(_opened(run, name), f"Frame {place + 1} of {row.get('name')}", photo=True)
        for place, name in enumerate(row.get("frames", []))
    ]


def share_rows(run: Run) -> PictureRows | None:
    """Frames of the rows, and the share of the prior over them at a few steps; None where there is no share."""
    looks = [look for look in [(0, run.rows), *run.looks] if any(_maps(row) for row in look[1])]
    chosen = evenly(looks, COLUMNS)
    if not chosen:
        return None
    highest = max(
        (value for _, rows in chosen for row in rows for plane in _maps(row) for line in plane for value in line),
        default=0.0,
    )
    shown = []
    for number, row in enumerate(run.rows):
        names = list(row.get("frames", []))
        for place in evenly(range(len(names)), FRAMES):
            frame = _opened(run, names[place])
            pictures: list[Picture | None] = [Picture.of(frame, f"Frame {place + 1} of {row.get('name')}", photo=True)]
            for step, rows in chosen:
                planes = _maps(rows[number]) if number < len(rows) else []
                pictures.append(_overlay(frame, planes[place], highest, step) if place < len(planes) else None)
            shown.append(PictureRow(f"{row.get('name')}, frame {place + 1} of {len(names)}", pictures))
    columns = ["frame", *(f"step {step:,}" for step, _ in chosen)]
    about = (
        f"One scale for all: dark is a share of 0 (the host's token alone), bright is {highest:.4g}, the highest here."
    )
    return PictureRows(columns, shown, about)


def _overlay(frame: Image.Image, plane: Sequence[Sequence[float]], highest: float, step: int) -> Picture:
    values = np.array(plane, dtype=np.float64)
    scaled = values / highest if highest > 0 and math.isfinite(highest) else np.zeros_like(values)
    mean = float(values.mean())
    alt = f"Share of the prior at step {step}, mean {mean:.4g}"
    return Picture.of(heated(frame, np.clip(np.nan_to_num(scaled), 0, 1)), alt, photo=True)


def _maps(row: Mapping[str, Any]) -> list[Any]:
    shares = row.get("shares")
    maps = shares.get("maps", []) if isinstance(shares, Mapping) else []
    return [plane for plane in maps if plane]


def _opened(run: Run, name: Any) -> Image.Image:
    path = run.folder / FILES / str(name)
    if path.parent != run.folder / FILES:
        raise ReportError(f"{run.folder / FILES}: a picture must lie in that folder, found {str(name)[:80]!r}.")
    try:
        with opened_picture(path, ReportError, f"The picture {path}", ("JPEG",)) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ReportError(f"The picture {path} is missing.") from None
