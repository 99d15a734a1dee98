"""LIBERO's tables as questions: split by task, balanced within a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vega3d_plugin.evaluation.demo.clips import FRAMES, RoomClips
from vega3d_plugin.scenes.export import pixels
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.room_questions import RoomQuestion, balanced
from vega3d_plugin.scenes.scene import Scene

from .table_questions import looks, table_questions

Split = Literal["train", "validation", "test"]
#: The numbers of a suite's tasks in each split. No task is in two.
TASKS: dict[Split, range] = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_NAME = re.compile(r"(?P<suite>libero_\w+?)_(?P<task>\d+)_(?P<state>\d+)")


@dataclass(frozen=True)
class Asked:
    """A question about views of a table. Attributes: ``question``; ``scene``: an index into the split's scenes."""

    question: RoomQuestion
    scene: int


def tables_of(folder: Path, split: Split) -> list[Path]:
    """Folders of a split's scenes, ``SUITE_TASK_STATE``.

    Raises:
        SystemExit: there is none.
    """
    named = [(path, found) for path in sorted(folder.iterdir()) if (found := _NAME.fullmatch(path.name))]
    inside = [path for path, found in named if int(found["task"]) in TASKS[split]]
    if not inside:
        raise SystemExit(f"{folder} holds no table of {split}. Run `libero_questions.py render {folder}` first.")
    return inside


def ask(scenes: list[Scene], seed: int, most: int = 12, window: int = FRAMES) -> list[Asked]:
    """Balanced questions about the first and the last of ``window`` views that follow each other, in both orders.

    Args:
        scenes: of one split.
        seed: draws what is left out.
        most: questions of a kind that are kept for each scene, in the mean.
        window: views, at least 2.
    """
    rng = np.random.default_rng(seed)
    found: list[Asked] = []
    for number, scene in enumerate(scenes):
        seen = looks(scene)
        for start in range(len(seen) - window + 1):
            for first, second in ((start, start + window - 1), (start + window - 1, start)):
                asked = table_questions(seen[first], seen[second], (first, second))
                found += [Asked(question, number) for question in asked]
    kept = [found[index] for index in balanced([one.question for one in found], rng)]
    return [one for pairs in _pairs(kept, rng).values() for pair in pairs[: most * len(scenes) // 2] for one in pair]


def _pairs(asked: Sequence[Asked], rng: np.random.Generator) -> dict[str, list[tuple[Asked, ...]]]:
    """By kind, in a drawn order: questions of one text, one for each answer, so that leaving a pair out is fair."""
    texts: dict[str, dict[str, list[Asked]]] = {}
    for one in asked:
        texts.setdefault(one.question.text, {}).setdefault(one.question.answer, []).append(one)
    kinds: dict[str, list[tuple[Asked, ...]]] = {}
    for answers in texts.values():
        drawn = [[each[index] for index in rng.permutation(len(each))] for each in answers.values()]
        kinds.setdefault(drawn[0][0].question.kind, []).extend(zip(*drawn, strict=True))
    return {kind: [pairs[index] for index in rng.permutation(len(pairs))] for kind, pairs in kinds.items()}


def table_clips(folder: Path, split: Split, seed: int = 0, *, size: tuple[int, int] = (84, 112)) -> RoomClips:
    """Clips of four views and the questions about them; ``room`` is the number of the scene.

    Args:
        folder: of exported scenes.
        split: whose.
        seed: draws the questions.
        size: (height, width) of the frames, multiples of 28.
    """
    scenes = [open_scene(str(path)) for path in tables_of(folder, split)]
    asked = ask(scenes, seed)
    clips: list[NDArray[np.uint8]] = []
    numbers: dict[tuple[int, int, int], int] = {}
    for one in asked:
        key = _key(one)
        if key not in numbers:
            numbers[key] = len(clips)
            clips.append(_shown(scenes[one.scene], one.question.frames, size))
    clip = np.array([numbers[_key(one)] for one in asked])
    return RoomClips(
        np.stack(clips), tuple(one.question for one in asked), clip, np.array([one.scene for one in asked])
    )


def rows(folder: Path, split: Split, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a training file; pictures are files of the scenes' folders, their paths are relative to ``folder``."""
    places = tables_of(folder, split)
    scenes = [open_scene(str(path)) for path in places]
    found = []
    for number, one in enumerate(ask(scenes, seed)):
        question, views = one.question, scenes[one.scene].views
        text = f"<image>\n<image>\n{question.text}\nAnswer with one word: {' or '.join(question.choices)}."
        found.append(
            {
                "id": f"{split}_{number:05d}",
                "scene": places[one.scene].name,
                "images": [f"{places[one.scene].name}/{views[frame].name}" for frame in question.frames],
                "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": question.answer}],
                "question_type": question.kind,
                "choices": list(question.choices),
            }
        )
    return found


def _key(one: Asked) -> tuple[int, int, int]:
    return (one.scene, *one.question.frames)


def _shown(scene: Scene, ends: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The views from the first to the last, which may be the earlier one: uint8 ``[T, H, W, 3]``."""
    order = range(ends[0], ends[1] + 1) if ends[0] < ends[1] else range(ends[0], ends[1] - 1, -1)
    frames = torch.stack([scene.views[view].frame() for view in order])
    return pixels(torch.nn.functional.interpolate(frames, size, mode="area"))
