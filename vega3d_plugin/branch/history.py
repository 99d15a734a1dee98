"""Earlier observations of a policy, so that the prior sees time. Ours; the paper's policy sees one observation.

This is the one thing that a branch remembers from call to call, so it must know whose calls belong together: those of
one thread, unless an episode is named (``with handle.episode():``).
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch

from ..contracts.clips import Clip
from ..contracts.errors import AlignmentError, Vega3dWarning


class Episode:
    """The last observations of one actor, camera by camera.

    A context manager: calls inside the block belong to this episode, whichever thread makes them. Between two blocks it
    keeps what it saw.

    Args:
        history: of the branch whose calls these are.
    """

    def __init__(self, history: History) -> None:
        self._history, self._length = weakref.ref(history), history.length
        self._past: list[deque[Clip]] = []
        self._lock = threading.Lock()

    def extend(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """Put up to ``(length - 1)`` earlier observations before each clip, and remember the clips.

        Observations of other cameras, or of another size, begin a new history.
        """
        if any(clip.scene is not None for clip in clips):
            raise AlignmentError("images='scene' and history > 1 need views of one size. Patch with images='separate'.")
        with self._lock:
            if [c.frames.shape for c in clips] != [past[-1].frames.shape for past in self._past]:
                self._past = [deque(maxlen=self._length) for _ in clips]
            longer = []
            for clip, past in zip(clips, self._past, strict=True):
                past.append(clip)
                frames = torch.cat([earlier.frames for earlier in past])
                longer.append(replace(clip, frames=frames, past=frames.shape[0] - clip.frames.shape[0]))
            return longer

    def reset(self) -> None:
        """Forget all observations."""
        with self._lock:
            self._past = []

    def belongs_to(self, history: History) -> bool:
        """True for the branch that made it, false for that of a copied model."""
        return self._history() is history

    def __enter__(self) -> Episode:
        _OPEN.set((*_OPEN.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        opened = list(_OPEN.get())
        if self in opened:
            # The innermost: a block may lie inside another of the same episode.
            del opened[len(opened) - 1 - opened[::-1].index(self)]
        _OPEN.set(tuple(opened))


_OPEN: ContextVar[tuple[Episode, ...]] = ContextVar("vega3d_episodes", default=())


class History:
    """The episodes of one branch; copies and pickles of it are empty.

    Args:
        length: observations per clip, the current one included; 1 keeps none.
    """

    def __init__(self, length: int = 1) -> None:
        self.length = length
        self._of_threads: weakref.WeakKeyDictionary[threading.Thread, Episode] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._has_warned = False

    def extend(self, clips: Sequence[Clip], *, keep: bool) -> Sequence[Clip]:
        """Put the earlier frames of each clip's camera before it.

        Args:
            clips: one observation: of each camera a clip, in a fixed order.
            keep: False leaves the clips as they are and remembers nothing: in training and validation, observations
                are drawn at random.

        Returns:
            The clips, with the earlier observations of this episode before each.
        """
        if self.length == 1 or not keep:
            return clips
        return self.episode().extend(clips)

    def episode(self) -> Episode:
        """The one that a call in this thread belongs to: that of the innermost block, else the thread's own."""
        begun = self._begun()
        if begun is not None:
            return begun
        with self._lock:
            warn = len(self._of_threads) > 0 and not self._has_warned
            self._has_warned = self._has_warned or warn
            own = self._of_threads[threading.current_thread()] = Episode(self)
        if warn:
            warnings.warn(
                f"history={self.length}: this policy acts in a second thread, which begins an episode of its own and "
                "does not see the other thread's observations. If one robot's calls come from several threads, as in "
                "a server, keep `episode = vega3d.get_handle(model).episode()` for each robot and act inside `with "
                "episode:`.",
                Vega3dWarning,
                stacklevel=2,
            )
        return own

    def reset(self) -> None:
        """Forget the observations of this thread's episode, or of the block's: an episode starts."""
        begun = self._begun()
        if begun is not None:
            begun.reset()

    def _begun(self) -> Episode | None:
        named = next((e for e in reversed(_OPEN.get()) if e.belongs_to(self)), None)
        return named or self._of_threads.get(threading.current_thread())

    def __reduce__(self) -> Any:
        return History, (self.length,)
