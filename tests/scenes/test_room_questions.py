"""Questions that name no box: their answers are true, and a model that sees nothing is at chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vega3d_plugin.scenes.rendered import RoomClip, render_room
from vega3d_plugin.scenes.room_questions import UNNAMED_KINDS, RoomQuestion, balanced, unnamed_questions

FRAMES = 10


@pytest.fixture(scope="module")
def asked() -> list[tuple[RoomClip, RoomQuestion]]:
    clips = [render_room(FRAMES, (48, 48), seed) for seed in range(12)]
    return [(clip, q) for clip in clips for start in (0, 3, 6) for q in unnamed_questions(clip, (start, start + 3))]


def test_every_kind_is_asked(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    assert {question.kind for _, question in asked} == {*UNNAMED_KINDS}
    assert all(question.answer in question.choices for _, question in asked)


def test_the_camera_moved_where_the_answer_says(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    for clip, question in asked:
        if question.kind == "moved":
            first, second = question.frames
            eye = np.linalg.inv(clip.world_to_camera[second])[:, 3]
            assert ((clip.world_to_camera[first] @ eye)[0] > 0) == (question.answer == "right")


def test_the_camera_came_closer_where_the_answer_says(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    for clip, question in asked:
        if question.kind == "came closer":
            middle = [*np.mean([box.centre for box in clip.boxes], axis=0), 1.0]
            before, after = (np.linalg.norm((clip.world_to_camera[f] @ middle)[:3]) for f in question.frames)
            assert (after < before) == (question.answer == "yes")


def test_the_nearest_box_lies_where_the_answer_says(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    agreed = []
    for clip, question in asked:
        if question.kind == "nearest":
            frame = question.frames[0]
            # Depth is along the axis of the camera, so the nearest pixel of the picture may be another box's.
            depth = np.where(clip.instance[frame] >= 0, clip.depth[frame], np.inf)
            seen = clip.instance[frame] == clip.instance[frame].flat[depth.argmin()]
            agreed.append((np.nonzero(seen)[1].mean() < 23.5) == (question.answer == "left"))
    assert len(agreed) > 20
    assert np.mean(agreed) > 0.9


def test_the_other_order_of_the_frames_has_the_other_answer(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    found = {(id(clip), q.kind, q.frames): q.answer for clip, q in asked if not UNNAMED_KINDS[q.kind]}
    assert found
    for (clip, kind, (first, second)), answer in found.items():
        assert found[clip, kind, (second, first)] != answer


def test_balanced_answers_are_equally_frequent(asked: list[tuple[RoomClip, RoomQuestion]]) -> None:
    questions = [question for _, question in asked]
    assert len({n for _, n in Counter((q.kind, q.answer) for q in questions if q.kind == "nearest").items()}) == 2
    kept = balanced(questions, np.random.default_rng(0))
    counts = Counter((questions[index].text, questions[index].answer) for index in kept)
    for question in questions:
        assert len({counts[question.text, word] for word in question.choices}) == 1
    assert len(kept) == len(set(kept)) > len(questions) / 2
