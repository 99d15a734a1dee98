"""The demo's small Qwen2.5-VL, trained from nothing on clips of four frames of rooms or tables."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.evaluation.demo.clips import CLIPS, ENLARGED, FRAMES, HELD_OUT, PATH, SIDE, RoomClips, room_clips
from vega3d_plugin.evaluation.demo.compared import OPEN, SMALL_BRANCH
from vega3d_plugin.evaluation.demo.comparison import answers, learn
from vega3d_plugin.evaluation.demo.small_host import EncodedClips, small_host
from vega3d_plugin.scenes.rendered import render_room

from .arms import BETTER, FIRST, REST
from .host import Host
from .seeing import LEARNT, SEEN, Seeing, cells, learn_to_see, state_of
from .tables import table_clips

TOKEN = 28  # pixels of a frame that a token of the host stands for, in height and in width


@dataclass(frozen=True)
class Plan:
    """Attributes: ``train``, ``test``: rooms (tables are as many as were rendered); ``steps``: of each training."""

    train: int = 80
    test: int = 48
    steps: int = 200


class ToyQwen(Host):
    """See the module.

    Args:
        plan: sizes; a folder holds one plan.
        tables: folder of LIBERO's scenes (``libero_questions.py render``) to ask about in place of rooms.
    """

    train: RoomClips
    test: RoomClips

    def __init__(self, plan: Plan | None = None, tables: Path | None = None) -> None:
        self.plan = plan or Plan()
        self.arms = FIRST + REST
        if tables is None:
            self.arms += BETTER
            self.train, self.test = room_clips(0, self.plan.train, 0), room_clips(HELD_OUT, self.plan.test, 0)
        else:
            self.train, self.test = table_clips(tables, "train"), table_clips(tables, "test")
        self._encoded: dict[tuple[bool, bool], tuple[EncodedClips, EncodedClips]] = {}
        self._towers: dict[int, tuple[dict[str, float], dict[str, Any]]] = {}
        self._words = (*self.train.questions, *self.test.questions)
        self._host = small_host(self._words, 0)

    @property
    def digest(self) -> str:
        """See :class:`Host`."""
        digest = hashlib.sha256(repr(self.plan).encode())
        for rows in (self.train, self.test):
            digest.update(rows.clips.tobytes())
            digest.update(repr([(q.text, q.answer) for q in rows.questions]).encode())
        return digest.hexdigest()[:16]

    def build(self, seed: int) -> Any:
        """See :class:`Host`."""
        return small_host(self._words, seed).build()

    def encoded(self, *, blind: bool, more: bool = False) -> tuple[EncodedClips, EncodedClips]:
        """See :class:`Host`."""
        if (blind, more) not in self._encoded:
            train = room_clips(0, 2 * self.plan.train, 0) if more else self.train
            first, second = (
                EncodedClips(self._host.processor, grey(part) if blind else part) for part in (train, self.test)
            )
            self._encoded[blind, more] = first, second
        return self._encoded[blind, more]

    def see(self, model: Any, seed: int) -> dict[str, float]:
        """See :class:`Host`: depth and boxes of both frames that a token holds, each within its 28x28 pixels."""
        tower = model.model.visual
        if seed not in self._towers:
            found = self._learn_to_see(tower, seed)
            self._towers[seed] = found, state_of(tower)
        found, state = self._towers[seed]
        tower.load_state_dict(state)
        return found

    def _learn_to_see(self, tower: Any, seed: int) -> dict[str, float]:
        clips, told, judged = self._to_see

        def look(numbers: Tensor) -> Tensor:
            batch = clips.batch(numbers)
            seen = tower(batch["pixel_values_videos"], grid_thw=batch["video_grid_thw"])
            tokens = getattr(seen, "pooler_output", seen)
            return tokens.unflatten(0, (len(numbers), -1))

        return learn_to_see(tower, look, told, judged, Seeing(), seed)

    @cached_property
    def _to_see(self) -> tuple[EncodedClips, Tensor, int]:
        """Clips of rooms that nobody asks about, what their tokens are to tell, and how many are judged on."""
        plan, clips, told = Seeing(), [], []
        rooms = [*range(LEARNT, LEARNT + plan.rooms), *range(SEEN, SEEN + plan.judged)]
        for room in rooms:
            view = render_room(PATH, (SIDE, SIDE), room)
            for start in np.random.default_rng(room).permutation(PATH - FRAMES + 1)[:CLIPS].tolist():
                frames = list(range(start, start + FRAMES))
                clips.append(view.frames[frames].repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2))
                # A token holds two frames.
                of_frame = cells(view, frames, SIDE * ENLARGED // TOKEN)
                pairs = of_frame.reshape(FRAMES // 2, 2, *of_frame.shape[1:]).transpose(0, 2, 3, 1)
                told.append(pairs.reshape(-1, 2 * of_frame.shape[2]))
        numbers = np.arange(len(clips))
        asked = (self.train.questions[0],) * len(clips)
        encoded = EncodedClips(self._host.processor, RoomClips(np.stack(clips), asked, numbers, numbers))
        return encoded, torch.from_numpy(np.stack(told)), plan.judged * CLIPS

    def prior(self) -> Prior:
        """See :class:`Host`."""
        return vega3d.load_prior("small-world")

    def patch(self, model: Any, prior: Prior) -> None:
        """See :class:`Host`."""
        vega3d.patch(model, prior, processor=self._host.processor, **SMALL_BRANCH, **OPEN)

    @torch.no_grad()
    def look(self, model: Any, rows: EncodedClips) -> None:
        """See :class:`Host`."""
        for some in torch.from_numpy(np.unique(rows.rows.clip, return_index=True)[1]).split(16):
            model(**rows.batch(some), use_cache=False)

    def learn(self, model: Any, rows: EncodedClips, seed: int, faster: float) -> list[float]:
        """See :class:`Host`."""
        return learn(model, rows, self.plan.steps, seed, lambda done: None, faster=faster)

    def right(self, model: Any, asked: EncodedClips) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """See :class:`Host`."""
        said = answers(model, asked)
        return (asked.choices[torch.arange(len(said)), torch.from_numpy(said)] == asked.answer).numpy()

    def glance(self, asked: EncodedClips) -> dict[str, Any]:
        """See :class:`Host`."""
        return {**asked.batch(torch.arange(min(64, len(asked.rows)))), "use_cache": False}


def grey(rows: RoomClips) -> RoomClips:
    """The same questions about pictures that show nothing."""
    return replace(rows, clips=np.full_like(rows.clips, 128))
