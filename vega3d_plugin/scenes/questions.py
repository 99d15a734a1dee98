"""Questions about a scene: from a file, or with answers that its known objects give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import SceneError
from .files import brief, read_json
from .scene import Scene, SceneObject

#: The share of a picture that a thing must fill to be asked about, and that of the nearest views that must show it.
SEEN = 0.004
_APART = 0.4  # metres by which one thing must be nearer than another


@dataclass(frozen=True)
class Question:
    """Attributes: ``text``; ``answer``; ``kind``: what it asks for, in VSI-Bench's words where it has any."""

    text: str
    answer: str
    kind: str = "given"


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSON file: a list of objects with ``question`` and ``answer``, and perhaps ``question_type``.

    Raises:
        SceneError: it cannot be read, or an entry is no question.
    """
    questions = []
    for number, entry in enumerate(read_json(path, list)):
        texts = [entry.get(key) if isinstance(entry, dict) else None for key in ("question", "answer")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise SceneError(f"{path}, entry {number}: `question` and `answer` must be texts, found {brief(entry)}.")
        questions.append(Question(str(texts[0]), str(texts[1]), str(entry.get("question_type", "given"))))
    return questions


def object_questions(scene: Scene) -> list[Question]:
    """Questions whose answers follow from the objects of a scene, in VSI-Bench's words.

    How many things of a kind there are, how long a thing is (centimetres), and which of two things is nearer to the
    camera of the first view. Only kinds of which the views show every one are counted, and only things that are one
    of their kind are named.

    Args:
        scene: with objects, and with instances, depth and poses in its views.

    Raises:
        SceneError: the scene does not know them.
    """
    if not scene.objects or any(view.read_instances is None for view in scene.views):
        raise SceneError(
            f"Scene {scene.name!r} ({scene.source}) does not know which object each pixel shows, so no questions "
            "follow from it. Give questions in a file."
        )
    scene.require("depth", "pose")
    shown = _shown(scene)
    kinds = Counter(thing.name for thing in scene.objects)
    visible = Counter(scene.objects[index].name for index in shown)
    single = [index for index in sorted(shown) if kinds[scene.objects[index].name] == 1]
    return [*_counts(kinds, visible), *_sizes(scene, single), *_nearer(scene, single)]


def _shown(scene: Scene) -> set[int]:
    """Objects that fill enough of at least one view."""
    found: set[int] = set()
    for view in scene.views:
        instances = view.instances()
        if instances is None:
            continue
        numbers, counts = torch.unique(instances, return_counts=True)
        found |= {
            int(n) for n, count in zip(numbers, counts, strict=True) if n >= 0 and count > SEEN * instances.numel()
        }
    return found


def _counts(kinds: Counter[str], visible: Counter[str]) -> Iterator[Question]:
    for name, count in kinds.items():
        if count > 1 and visible[name] == count:
            text = f"How many {name}(s) are in this room?\nPlease answer the question using a single word or phrase."
            yield Question(text, str(count), "object_counting")


def _sizes(scene: Scene, single: list[int]) -> Iterator[Question]:
    for index in single:
        thing = scene.objects[index]
        text = (
            f"What is the length of the longest dimension (length, width, or height) of the {thing.name}, measured in "
            "centimeters?\nPlease answer the question using a single word or phrase."
        )
        yield Question(text, str(round(100 * max(thing.size))), "object_size_estimation")


def _nearer(scene: Scene, single: list[int]) -> Iterator[Question]:
    """Which of two things that the first view shows well is nearer to its camera, by the median of their pixels."""
    view = scene.views[0]
    depth, instances = view.depth(), view.instances()
    if depth is None or instances is None or depth.shape != instances.shape:
        return
    middles = {}
    for index in single:
        inside = instances == index
        if int(inside.sum()) > SEEN * instances.numel():
            middles[index] = float(depth[inside].median())
    for number, (one, two) in enumerate(combinations(middles, 2)):
        if abs(middles[one] - middles[two]) < _APART:
            continue
        # Named in turn, so that neither "the first" nor "the second" is always right.
        names = [scene.objects[index].name for index in ((one, two) if number % 2 else (two, one))]
        near = scene.objects[one if middles[one] < middles[two] else two].name
        text = (
            f"In the first image, which is nearer to the camera, the {names[0]} or the {names[1]}?\n"
            "Please answer the question using a single word or phrase."
        )
        yield Question(text, near, "nearer")


def corners(thing: SceneObject) -> NDArray[np.float64]:
    """The corners of the box around an object, ``[8, 3]`` metres.

    Angles turn about z, x and y in this order (``EulerAnglesToMatrix`` with ``ZXY``, as EmbodiedScan's boxes do).
    """
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
    points = signs * np.array(thing.size)[:, None] / 2
    for axis, angle in zip((1, 0, 2), reversed(thing.angles or (0.0, 0.0, 0.0)), strict=True):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        points = turn @ points
    return np.asarray((points + np.array(thing.centre)[:, None]).T)
