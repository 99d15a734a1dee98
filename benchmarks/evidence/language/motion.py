"""Which way did the camera move? A linear read-out of the features of two frames, against twins and pixels.

The question and its mirror image are the same two frames in the other order, so each frame alone tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vega3d
from vega3d_plugin.analysis.intervals import mean_interval

from .features import SETTINGS, pictures_as_seen, trained_prior, untrained_prior
from .rooms import Rows, make_rows

#: Cells, in height and width, that a frame's features are averaged in.
GRIDS = (1, 4)
PENALTIES = (1e1, 1e2, 1e3, 1e4)
TWINS = 3

Features = Callable[[Tensor], Tensor]


def read_out(rooms: tuple[int, int, int] = (100, 20, 60)) -> Iterator[str]:
    """Lines of a table: prior, cells, share of right answers with its interval over rooms.

    Args:
        rooms: to fit on, to choose the penalty on, and to judge on.
    """
    splits = [_moved(make_rows(split, count)) for split, count in zip(_SPLITS, rooms, strict=True)]
    yield "| features | " + " | ".join(f"{cells}x{cells} cells a frame" for cells in GRIDS) + " |"
    yield "| --- |" + " --- |" * len(GRIDS)
    for name, prior in _priors():
        cells = [_judge(prior, splits, grid) for grid in GRIDS]
        yield f"| {name} | " + " | ".join(cells) + " |"


_SPLITS = ("train", "validation", "test")
Moved = tuple[Tensor, Tensor, np.ndarray[Any, Any]]


def _priors() -> Iterator[tuple[str, Features]]:
    yield "small-world, both frames at once (`views`)", trained_prior()
    yield (
        "small-world, each frame alone (`frame`)",
        vega3d.load_prior("small-world", **{**SETTINGS, "context": "frame"}),
    )
    for seed in range(TWINS):
        yield f"untrained twin {seed} (`views`)", untrained_prior(seed)
    yield "pixels", lambda frames: torch.nn.functional.interpolate(frames, SETTINGS["size"], mode="area")  # type: ignore[arg-type]


def _moved(rows: Rows) -> Moved:
    """Clips that are asked about the camera's motion, +1 where it moved left, and their rooms."""
    found = {
        int(clip): (1.0 if question.answer == "left" else -1.0, int(room))
        for question, clip, room in zip(rows.questions, rows.clip, rows.room, strict=True)
        if question.kind == "moved"
    }
    truth, rooms = zip(*found.values(), strict=True)
    return pictures_as_seen(rows)[list(found)], torch.tensor(truth), np.array(rooms)


def _judge(prior: Features, splits: list[Moved], grid: int) -> str:
    pooled = [_pooled(prior, clips, grid) for clips, _, _ in splits]
    mean, spread = pooled[0].mean(0), pooled[0].std(0) + 1e-6
    fit, choose, judge = ((each - mean) / spread for each in pooled)
    products = fit @ fit.T
    best, share = None, -1.0
    for penalty in PENALTIES:
        weights = fit.T @ torch.linalg.solve(products + penalty * torch.eye(len(fit)), splits[0][1])
        right = float(((choose @ weights).sign() == splits[1][1]).float().mean())
        if right > share:
            best, share = weights, right
    assert best is not None
    right = ((judge @ best).sign() == splits[2][1]).double().numpy()
    rooms = splits[2][2]
    found = mean_interval([float(right[rooms == room].mean()) for room in np.unique(rooms)])
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _pooled(prior: Features, clips: Tensor, grid: int) -> Tensor:
    return torch.stack([torch.nn.functional.adaptive_avg_pool2d(prior(clip).float(), grid).flatten() for clip in clips])
