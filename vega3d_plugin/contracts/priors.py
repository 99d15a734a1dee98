"""The contract of a prior: a frozen vision model turned into a feature extractor."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .framing import Framing

if TYPE_CHECKING:
    from .settings import PriorSettings

Span = tuple[float, float]


class Prior(ABC):
    """A frozen feature extractor: a clip in, a feature map out.

    A prior is no ``nn.Module``, and never registered in the host: it must not enter ``state_dict``, ``parameters()``,
    ``train()``, LoRA's search or ZeRO's partitioning. It keeps its own device and dtype, runs without gradients, and
    is shared by copies of a patched model.

    Several models in several threads may share one prior. Its calls then take turns (:func:`turn`), so a prior may keep
    state on itself while it works on a clip. One whose calls may overlap, because they change nothing on it, says so
    with :attr:`concurrent`. A prior that is called directly, not by a branch, takes turns if it does so itself, as all
    built-in ones do.
    """

    #: True where calls may overlap in several threads.
    concurrent: ClassVar[bool] = False
    #: Channels ``C`` of the feature map.
    feature_dim: int
    #: Identifies the weights and every setting that changes a feature.
    fingerprint: str
    #: Resolved settings, when it was built from settings.
    settings: PriorSettings | None = None

    @abstractmethod
    def __call__(self, frames: Tensor) -> Tensor:
        """Extract features.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1], any size.

        Returns:
            ``[T', C, h, w]``, without gradient.

        Raises:
            FramesError: frames of a wrong shape, dtype or range.
        """

    def spans(self, frames: int, steps: int) -> Sequence[Span] | None:
        """For a clip of ``frames`` frames, the part of it that each of the ``steps`` feature steps covers.

        Fractions ``(start, end)`` of the clip's length; None for equal parts.
        """
        return None

    def framing(self, frame: tuple[int, int]) -> Framing:
        """Which part of frames of this size ``(height, width)`` the map covers: what ``size`` and ``resize`` say."""
        settings = self.settings
        if settings is None or settings.size is None:
            return Framing.stretch(frame, frame)
        return (Framing.crop if settings.resize == "crop" else Framing.stretch)(frame, settings.size)

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """The dtype it computes in on a device, where it knows; None where it does not matter."""
        return getattr(torch, self.settings.dtype) if self.settings and self.settings.dtype else None

    def __copy__(self) -> Prior:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Prior:
        return self


# Beside the priors, not on them: a lock cannot be pickled, and third parties' priors need not know of it.
_locks: dict[int, threading.RLock] = {}
_locks_lock = threading.Lock()


def turn(prior: Prior) -> AbstractContextManager[Any]:
    """Within it, no other thread calls this prior; the thread that has the turn may take it again."""
    if prior.concurrent:
        return nullcontext()
    with _locks_lock:
        lock = _locks.get(id(prior))
        if lock is None:
            lock = _locks[id(prior)] = threading.RLock()
            weakref.finalize(prior, _locks.pop, id(prior), None).atexit = False
    return lock
