"""Rows: two pictures of a rendered room and a question with one right word. Rooms of the splits are disjoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vega3d_plugin.scenes.rendered import RoomClip, render_room
from vega3d_plugin.scenes.room_questions import RoomQuestion, pair_questions

SIDE = 48
PATCH = 8
#: Part of a patch that a box must fill to be what the patch shows.
FILLED = 0.15
#: Pixels of a box that must be seen for it to be in the description of a picture.
SEEN = 16
FRAMES = 16
#: First seed of the rooms of each split.
FIRST_ROOM = {"train": 0, "validation": 500_000, "test": 700_000}


@dataclass(frozen=True)
class Rows:
    """Questions and the pictures they are about.

    Attributes:
        pictures: uint8 ``[clips, 2, 3, side, side]``.
        things: int64 ``[clips, 2, grid, grid]``: of each patch, 0, or 1 + the box that it shows most of.
        cells: int64 ``[clips, 2, boxes]``: the patch in which the middle of what is seen of a box lies; -1: not seen.
        clip: of each question, an index into ``pictures``.
        room: of each question, the seed of its room.
        questions: in the order of ``clip`` and ``room``.
    """

    pictures: Tensor
    things: Tensor
    cells: Tensor
    clip: np.ndarray[Any, np.dtype[np.int64]]
    room: np.ndarray[Any, np.dtype[np.int64]]
    questions: tuple[RoomQuestion, ...]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def digest(self) -> str:
        """Identifies pictures, questions and answers."""
        digest = hashlib.sha256(self.pictures.numpy().tobytes())
        for clip, question in zip(self.clip, self.questions, strict=True):
            digest.update(f"{clip} {question}".encode())
        return digest.hexdigest()[:16]


def make_rows(split: str, rooms: int, pairs: int = 4) -> Rows:
    """Rows of a split.

    Args:
        split: a key of :data:`FIRST_ROOM`.
        rooms: how many.
        pairs: pairs of frames that each room is asked about.
    """
    pictures: list[np.ndarray[Any, Any]] = []
    things: list[np.ndarray[Any, Any]] = []
    cells: list[np.ndarray[Any, Any]] = []
    clips: dict[tuple[int, int, int], int] = {}
    found: list[tuple[int, int, RoomQuestion]] = []
    for room in range(FIRST_ROOM[split], FIRST_ROOM[split] + rooms):
        rng = np.random.default_rng(room)
        view = render_room(FRAMES, (SIDE, SIDE), room)
        for _ in range(pairs):
            start, gap = int(rng.integers(0, FRAMES - 3)), int(rng.integers(1, 4))
            for question in pair_questions(view, (start, start + gap), rng):
                key = (room, *question.frames)
                if key not in clips:
                    clips[key] = len(pictures)
                    pictures.append(view.frames[list(question.frames)].transpose(0, 3, 1, 2))
                    things.append(_things(view, question.frames))
                    cells.append(_cells(view, question.frames))
                found.append((clips[key], room, question))
    stacked = torch.from_numpy(np.stack(pictures))
    index, of_room, questions = zip(*found, strict=True)
    return Rows(
        stacked,
        torch.from_numpy(np.stack(things)),
        torch.from_numpy(np.stack(cells)),
        np.array(index),
        np.array(of_room),
        questions,
    )


def _things(view: RoomClip, frames: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    instance = view.instance[list(frames)]
    filled = np.stack([instance == box for box in range(len(view.boxes))], axis=1)
    grid = SIDE // PATCH
    share = filled.reshape(2, -1, grid, PATCH, grid, PATCH).mean(axis=(3, 5))
    return np.where(share.max(axis=1) >= FILLED, 1 + share.argmax(axis=1), 0)


def _cells(view: RoomClip, frames: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = np.full((2, len(view.boxes)), -1)
    for place, frame in enumerate(frames):
        for box in range(len(view.boxes)):
            rows, columns = np.nonzero(view.instance[frame] == box)
            if len(rows) >= SEEN:
                found[place, box] = int(rows.mean()) // PATCH * (SIDE // PATCH) + int(columns.mean()) // PATCH
    return found
