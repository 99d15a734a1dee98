"""Short clips of many rendered rooms with questions about them; no room is in two parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...scenes.rendered import render_room
from ...scenes.room_questions import RoomQuestion, balanced, unnamed_questions

FRAMES = 4  # of a clip
PATH = 12  # frames along the way of the camera, 14 degrees apart
CLIPS = 3  # drawn from a room
SIDE = 56  # pixels of a rendered frame
#: Each pixel is shown as so many by so many: the small host's tokens are 28 pixels wide.
ENLARGED = 2
#: Seed of the first held-out room; those to train on begin at 0.
HELD_OUT = 10_000


@dataclass(frozen=True)
class RoomClips:
    """Questions and the clips that they are about.

    Attributes:
        clips: uint8 ``[N, 4, H, W, 3]``.
        questions: of all rooms.
        clip, room: of each question: an index into ``clips``, and the seed of its room.
    """

    clips: NDArray[np.uint8]
    questions: tuple[RoomQuestion, ...]
    clip: NDArray[np.int64]
    room: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def kinds(self) -> NDArray[Any]:
        """Of each question."""
        return np.array([question.kind for question in self.questions])


def room_clips(first: int, rooms: int, seed: int) -> RoomClips:
    """Render rooms and ask about them; of each text, every answer is equally frequent.

    Args:
        first: seed of the first room.
        rooms: how many.
        seed: draws the clips of a room, and what is left out for the balance.
    """
    rng = np.random.default_rng([seed, first])
    clips: list[NDArray[np.uint8]] = []
    asked: list[tuple[RoomQuestion, int, int]] = []
    for room in range(first, first + rooms):
        view = render_room(PATH, (SIDE, SIDE), room)
        for start in rng.permutation(PATH - FRAMES + 1)[:CLIPS].tolist():
            numbers: dict[tuple[int, int], int] = {}
            for question in unnamed_questions(view, (start, start + FRAMES - 1)):
                if question.frames not in numbers:
                    numbers[question.frames] = len(clips)
                    clips.append(_shown(view.frames, question.frames))
                asked.append((question, numbers[question.frames], room))
    kept = [asked[index] for index in balanced([question for question, _, _ in asked], rng)]
    questions, clip, of_room = zip(*kept, strict=True)
    return RoomClips(np.stack(clips), questions, np.array(clip), np.array(of_room))


def _shown(frames: NDArray[np.uint8], ends: tuple[int, int]) -> NDArray[np.uint8]:
    """The frames from the first to the last, which may be the earlier one."""
    chosen = frames[min(ends) : max(ends) + 1]
    return (chosen if ends[0] < ends[1] else chosen[::-1]).repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
