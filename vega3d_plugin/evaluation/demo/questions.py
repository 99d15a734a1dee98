"""Questions about the room, answered exactly from its geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest

import numpy as np

from vega3d_plugin.contracts.errors import SettingsError
from vega3d_plugin.scenes.rendered import Box, Floats, RoomClip

# A pair is asked about only when the answer is plain to see.
VISIBLE = 0.006  # part of the frame's pixels that each box must cover
LEFT_MARGIN = 0.12  # distance between the boxes' centres in the image, part of the frame's width
NEAR_MARGIN = 0.5  # metres between the boxes' distances from the camera


@dataclass(frozen=True)
class Question:
    """A question about a window of the clip.

    ``answer`` is one word: "yes", "no" or a colour. ``frames`` is the half-open range of frame indices to show;
    the answer holds for the camera of the first of them.
    """

    text: str
    answer: str
    frames: tuple[int, int]


@dataclass(frozen=True)
class _Pair:
    """Two boxes in the first frame of a window, ``first`` being the one on the left, or the nearer one."""

    start: int
    first: str
    second: str


def ask(clip: RoomClip, window: int, seed: int, count: int) -> list[Question]:
    """Draw ``count`` different questions about windows of ``window`` frames.

    Half of them ask which of two boxes is left of the other (yes or no), half which is nearer to the camera (its
    colour); each half is balanced between yes and no, or between the box named first and the one named second.
    Windows start every half window, and the questions are spread evenly over them.

    Args:
        clip: the room, of T frames.
        window: frames per question, 1..T.
        seed: draws windows, pairs and order; the same seed gives the same questions.
        count: how many questions.

    Raises:
        SettingsError: the settings are out of range, or the clip has too few plain cases; the message says how many.
    """
    total = len(clip.frames)
    wrong = []
    if not 1 <= window <= total:
        wrong.append(f"window is {window}: the clip has {total} frames, so give 1 to {total}")
    if count < 1:
        wrong.append(f"count is {count}: ask for at least 1 question")
    if seed < 0:
        wrong.append(f"seed is {seed}: give 0 or a positive number")
    if wrong:
        raise SettingsError(f"No questions can be asked: {'; '.join(wrong)}.")

    rng = np.random.default_rng(seed)
    starts = range(0, total - window + 1, max(1, window // 2))
    found = [_pairs_in(clip, start) for start in starts]
    left, right_first = _spread([pairs[0] for pairs in found], rng)
    near, far_first = _spread([pairs[1] for pairs in found], rng)
    groups = [
        [_left_question(pair, window, True) for pair in left],
        [_near_question(pair, window, True) for pair in near],
        [_left_question(pair, window, False) for pair in right_first],
        [_near_question(pair, window, False) for pair in far_first],
    ]
    questions = [question for turn in zip(*groups, strict=False) for question in turn]
    if len(questions) < count:
        raise SettingsError(
            f"{count} balanced questions were asked for, but windows of {window} frames in this clip of {total} allow "
            f"only {len(questions)}. Ask for fewer, use a shorter window, or render more frames or another seed."
        )
    drawn = questions[:count]
    return [drawn[i] for i in rng.permutation(count)]


def _left_question(pair: _Pair, window: int, yes: bool) -> Question:
    one, two = (pair.first, pair.second) if yes else (pair.second, pair.first)
    text = f"In the first frame, is the {one} box left of the {two} box?"
    return Question(text, "yes" if yes else "no", (pair.start, pair.start + window))


def _near_question(pair: _Pair, window: int, first: bool) -> Question:
    one, two = (pair.first, pair.second) if first else (pair.second, pair.first)
    text = f"In the first frame, which is nearer to the camera, the {one} box or the {two} box?"
    return Question(text, pair.first, (pair.start, pair.start + window))


def _pairs_in(clip: RoomClip, frame: int) -> tuple[list[_Pair], list[_Pair]]:
    """The plain pairs of one frame, (left, right) and (nearer, farther)."""
    width = clip.frames.shape[2]
    pose = clip.world_to_camera[frame]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    left, near = [], []
    for one, two in combinations(_visible(clip, frame), 2):
        gap = _column(clip, frame, two) - _column(clip, frame, one)
        if abs(gap) >= LEFT_MARGIN * width:
            a, b = (one, two) if gap > 0 else (two, one)
            left.append(_Pair(frame, a.name, b.name))
        # The nearest point and the centre must agree, or a long box beside a small one would be a riddle.
        gaps = np.array([_surface(two, eye) - _surface(one, eye), _centre(two, eye) - _centre(one, eye)])
        if (gaps >= NEAR_MARGIN).all() or (gaps <= -NEAR_MARGIN).all():
            a, b = (one, two) if gaps[0] > 0 else (two, one)
            near.append(_Pair(frame, a.name, b.name))
    return left, near


def _visible(clip: RoomClip, frame: int) -> Iterator[Box]:
    """Boxes that cover enough pixels of a frame and whose centre lies in it."""
    instance = clip.instance[frame]
    for i, box in enumerate(clip.boxes):
        inside = 0 <= _column(clip, frame, box) <= instance.shape[1] - 1
        if inside and (instance == i).mean() >= VISIBLE:
            yield box


def _column(clip: RoomClip, frame: int, box: Box) -> float:
    """Where the centre of a box projects to, in pixels from the left."""
    x, _, z = (clip.world_to_camera[frame] @ [*box.centre, 1.0])[:3]
    return float(clip.intrinsics[0, 0] * x / z + clip.intrinsics[0, 2])


def _surface(box: Box, eye: Floats) -> float:
    return float(np.linalg.norm(eye - np.clip(eye, box.lower, box.upper)))


def _centre(box: Box, eye: Floats) -> float:
    return float(np.linalg.norm(eye - np.array(box.centre)))


def _spread(windows: list[list[_Pair]], rng: np.random.Generator) -> tuple[list[_Pair], list[_Pair]]:
    """All pairs twice, in drawn orders that take one from each window in turn.

    The two orders of a pair make different questions. The second list takes each window's pairs from the other end,
    so a pair comes up in both orders only when there are few others left.
    """
    drawn = [[pairs[i] for i in rng.permutation(len(pairs))] for pairs in windows]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    return _in_turn(drawn), _in_turn([pairs[::-1] for pairs in drawn])


def _in_turn(windows: list[list[_Pair]]) -> list[_Pair]:
    return [pair for turn in zip_longest(*windows) for pair in turn if pair is not None]
