"""The demo's small Qwen2.5-VL, trained from nothing on clips of four frames of rooms or tables."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vega3d
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.evaluation.demo.clips import HELD_OUT, RoomClips, room_clips
from vega3d_plugin.evaluation.demo.compared import OPEN, SMALL_BRANCH
from vega3d_plugin.evaluation.demo.comparison import answers, learn
from vega3d_plugin.evaluation.demo.small_host import EncodedClips, small_host

from .host import Host
from .tables import table_clips


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
        if tables is None:
            self.train, self.test = room_clips(0, self.plan.train, 0), room_clips(HELD_OUT, self.plan.test, 0)
        else:
            self.train, self.test = table_clips(tables, "train"), table_clips(tables, "test")
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

    def encoded(self, *, blind: bool) -> tuple[EncodedClips, EncodedClips]:
        """See :class:`Host`."""
        first, second = (
            EncodedClips(self._host.processor, grey(part) if blind else part) for part in (self.train, self.test)
        )
        return first, second

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
