"""Questions about two frames of a rendered room, each with one word for an answer that its geometry gives exactly.

Answers are balanced by construction: every question is asked beside its mirror image (the two things, or the two
frames, change places), whose answer is the other one. A model that does not see the pictures is at chance, and for
the kinds that compare the frames so is one that looks at either frame alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..contracts.errors import SettingsError
from .rendered import Box, Floats, RoomClip

#: Kinds of questions, and whether they can be answered from the first frame alone.
KINDS = {"place": True, "side": True, "nearer": True, "moved": False, "approached": False}

# A question is asked only when the answer is plain to see.
VISIBLE = 0.012  # part of a frame's pixels that a box must cover
LEFT_MARGIN = 0.12  # between the boxes' centres in the image, part of the frame's width
NEAR_MARGIN = 0.5  # metres between the boxes' distances from the camera
MOVED = 0.3  # metres that the camera must have moved to a side
APPROACHED = 0.25  # metres that the distance to a box must have changed


@dataclass(frozen=True)
class RoomQuestion:
    """A question about two frames of a clip.

    Attributes:
        kind: a key of :data:`KINDS`.
        text: in words, without the choices.
        choices: the two words that may answer it.
        answer: one of them.
        frames: indices of the first and the second frame to show.
    """

    kind: str
    text: str
    choices: tuple[str, str]
    answer: str
    frames: tuple[int, int]


def pair_questions(clip: RoomClip, frames: tuple[int, int], rng: np.random.Generator) -> list[RoomQuestion]:
    """One question of each kind, where the two frames allow a plain one, and its mirror image.

    Args:
        clip: a rendered room, see :func:`~vega3d_plugin.scenes.rendered.render_room`.
        frames: indices of two frames that are not the same.
        rng: draws the boxes that are asked about.

    Raises:
        SettingsError: frames that the clip has not.
    """
    first, second = frames
    total = len(clip.frames)
    if first == second or not (0 <= first < total and 0 <= second < total):
        raise SettingsError(f"frames are {first} and {second}: give two different ones of 0 to {total - 1}.")
    found: list[RoomQuestion] = []
    for mirrored in (
        _place(clip, frames),
        _side(clip, frames),
        _nearer(clip, frames),
        _moved(clip, frames),
        _approached(clip, frames),
    ):
        pairs = list(mirrored)
        if pairs:
            found += pairs[int(rng.integers(len(pairs)))]
    return found


Mirrored = Iterator[tuple[RoomQuestion, RoomQuestion]]


def _place(clip: RoomClip, frames: tuple[int, int]) -> Mirrored:
    width = clip.frames.shape[2]
    for pair in combinations(_visible(clip, frames[0]), 2):
        left, right = sorted(pair, key=lambda box: _column(clip, frames[0], box))
        if _column(clip, frames[0], left) < 0.4 * width and _column(clip, frames[0], right) > 0.6 * width:
            text, choices = "where is the {} box in the first picture", ("left", "right")
            yield (
                RoomQuestion("place", text.format(left.name), choices, "left", frames),
                RoomQuestion("place", text.format(right.name), choices, "right", frames),
            )


def _side(clip: RoomClip, frames: tuple[int, int]) -> Mirrored:
    width = clip.frames.shape[2]
    for one, two in combinations(_visible(clip, frames[0]), 2):
        gap = _column(clip, frames[0], two) - _column(clip, frames[0], one)
        if abs(gap) >= LEFT_MARGIN * width:
            text = "in the first picture is the {} box left of the {} box"
            yield _swapped("side", text, (one.name, two.name), ("yes", "no"), gap > 0, frames)


def _nearer(clip: RoomClip, frames: tuple[int, int]) -> Mirrored:
    eye = _eye(clip, frames[0])
    for one, two in combinations(_visible(clip, frames[0]), 2):
        # The nearest point and the centre must agree, or a long box beside a small one would be a riddle.
        gaps = np.array([_surface(two, eye) - _surface(one, eye), _centre(two, eye) - _centre(one, eye)])
        if (np.abs(gaps) >= NEAR_MARGIN).all() and gaps[0] * gaps[1] > 0:
            text = "in the first picture is the {} box nearer than the {} box"
            yield _swapped("nearer", text, (one.name, two.name), ("yes", "no"), bool(gaps[0] > 0), frames)


def _moved(clip: RoomClip, frames: tuple[int, int]) -> Mirrored:
    sides = [_sideways(clip, one, other) for one, other in (frames, frames[::-1])]
    if min(map(abs, sides)) >= MOVED and sides[0] * sides[1] < 0:
        yield _reversed("moved", "did the camera move left or right", ("left", "right"), sides[0] < 0, frames)


def _approached(clip: RoomClip, frames: tuple[int, int]) -> Mirrored:
    seen = {box.name for box in _visible(clip, frames[1])}
    for box in _visible(clip, frames[0]):
        change = _centre(box, _eye(clip, frames[1])) - _centre(box, _eye(clip, frames[0]))
        if box.name in seen and abs(change) >= APPROACHED:
            text = f"did the camera come closer to the {box.name} box"
            yield _reversed("approached", text, ("yes", "no"), bool(change < 0), frames)


def _swapped(
    kind: str, text: str, names: tuple[str, str], choices: tuple[str, str], holds: bool, frames: tuple[int, int]
) -> tuple[RoomQuestion, RoomQuestion]:
    yes, no = choices if holds else choices[::-1]
    return (
        RoomQuestion(kind, text.format(*names), choices, yes, frames),
        RoomQuestion(kind, text.format(*names[::-1]), choices, no, frames),
    )


def _reversed(
    kind: str, text: str, choices: tuple[str, str], holds: bool, frames: tuple[int, int]
) -> tuple[RoomQuestion, RoomQuestion]:
    yes, no = choices if holds else choices[::-1]
    return (
        RoomQuestion(kind, text, choices, yes, frames),
        RoomQuestion(kind, text, choices, no, (frames[1], frames[0])),
    )


def _visible(clip: RoomClip, frame: int) -> list[Box]:
    """Boxes that cover enough pixels of a frame and whose centre lies in it."""
    instance = clip.instance[frame]
    return [
        box
        for index, box in enumerate(clip.boxes)
        if 0 <= _column(clip, frame, box) <= instance.shape[1] - 1 and (instance == index).mean() >= VISIBLE
    ]


def _column(clip: RoomClip, frame: int, box: Box) -> float:
    """Where the centre of a box projects to, in pixels from the left; NaN behind the camera."""
    x, _, z = (clip.world_to_camera[frame] @ [*box.centre, 1.0])[:3]
    return float(clip.intrinsics[0, 0] * x / z + clip.intrinsics[0, 2]) if z > 0 else float("nan")


def _eye(clip: RoomClip, frame: int) -> Floats:
    pose = clip.world_to_camera[frame]
    return np.asarray(-pose[:3, :3].T @ pose[:3, 3])


def _sideways(clip: RoomClip, one: int, other: int) -> float:
    """How far the camera of ``other`` stands to the right of that of ``one``, in metres."""
    return float((clip.world_to_camera[one] @ [*_eye(clip, other), 1.0])[0])


def _surface(box: Box, eye: Floats) -> float:
    return float(np.linalg.norm(eye - np.clip(eye, box.lower, box.upper)))


def _centre(box: Box, eye: Floats) -> float:
    return float(np.linalg.norm(eye - np.array(box.centre)))


#: Kinds of questions that name no box, and whether they can be answered from the first frame alone. A small model
#: that is trained from nothing learns these long before it can bind a name to a place.
UNNAMED_KINDS = {"moved": False, "came closer": False, "nearest": True}

CENTRE_MARGIN = 0.1  # between the nearest box's centre and the middle of the picture, part of the frame's width
CLOSER = 0.15  # metres that the distance to the middle of all boxes must have changed
AHEAD = 0.3  # metres that the nearest box must be nearer than the next


def unnamed_questions(clip: RoomClip, frames: tuple[int, int]) -> list[RoomQuestion]:
    """Questions of :data:`UNNAMED_KINDS`, where the two frames allow a plain one.

    The kinds that compare frames are asked for both orders of the frames, whose answers differ. ``nearest`` is asked
    about the first frame of either order; balance its answers over many clips with :func:`balanced`.

    Args:
        clip: a rendered room.
        frames: indices of two frames that are not the same; the second may be the earlier one.
    """
    middle = np.mean([box.centre for box in clip.boxes], axis=0)
    found: list[RoomQuestion] = []
    for first, second in (frames, frames[::-1]):
        sides = _sideways(clip, first, second), _sideways(clip, second, first)
        if min(map(abs, sides)) >= MOVED and sides[0] * sides[1] < 0:
            text, answer = "Did the camera move left or right?", "left" if sides[0] < 0 else "right"
            found.append(RoomQuestion("moved", text, ("left", "right"), answer, (first, second)))
        change = np.linalg.norm(_eye(clip, second) - middle) - np.linalg.norm(_eye(clip, first) - middle)
        if abs(change) >= CLOSER:
            text, answer = "Did the camera come closer to the boxes?", "yes" if change < 0 else "no"
            found.append(RoomQuestion("came closer", text, ("yes", "no"), answer, (first, second)))
        place = _nearest_place(clip, first)
        if place is not None and abs(place - 0.5) >= CENTRE_MARGIN:
            text, answer = "In the first picture, is the nearest box left or right?", "left" if place < 0.5 else "right"
            found.append(RoomQuestion("nearest", text, ("left", "right"), answer, (first, second)))
    return found


def balanced(questions: Sequence[RoomQuestion], rng: np.random.Generator) -> list[int]:
    """Indices of questions such that each answer to one text is equally frequent; those too many are drawn out.

    A model that does not see the pictures then answers half of them rightly, whatever it says.
    """
    groups: dict[tuple[str, tuple[str, str]], dict[str, list[int]]] = {}
    for index, question in enumerate(questions):
        choices = groups.setdefault((question.text, question.choices), {word: [] for word in question.choices})
        choices[question.answer].append(index)
    kept: list[int] = []
    for choices in groups.values():
        least = min(map(len, choices.values()))
        for indices in choices.values():
            kept += rng.permutation(indices)[:least].tolist()
    return sorted(kept)


def _nearest_place(clip: RoomClip, frame: int) -> float | None:
    """Where the box nearest to the camera is, part of the frame's width; None where another is about as near."""
    eye = _eye(clip, frame)
    boxes = sorted(_visible(clip, frame), key=lambda box: _surface(box, eye))
    if len(boxes) < 2 or _surface(boxes[1], eye) - _surface(boxes[0], eye) < AHEAD:
        return None
    return _column(clip, frame, boxes[0]) / int(clip.frames.shape[2])
