"""What an experiment has to know of its host: how it is built, taught and asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np

from vega3d_plugin.contracts.priors import Prior


class Asked(Protocol):
    """Questions about clips."""

    @property
    def kinds(self) -> np.ndarray[Any, Any]:
        """Of each question."""

    @property
    def room(self) -> np.ndarray[Any, Any]:
        """Of each question, the seed of its room."""

    def __len__(self) -> int: ...


class Host(ABC):
    """A host and the questions it is taught and asked.

    Attributes:
        train, test: questions to learn from and those held out; no room is in both.
        arms: that are run with this host, in order.
    """

    train: Asked
    test: Asked
    arms: tuple[str, ...]

    @property
    @abstractmethod
    def digest(self) -> str:
        """Identifies the questions, the pictures and the plan."""

    @abstractmethod
    def build(self, seed: int) -> Any:
        """A fresh model whose random parts are drawn from a seed."""

    @abstractmethod
    def encoded(self, *, blind: bool, more: bool = False) -> tuple[Any, Any]:
        """Both sets of questions as models take them; of grey pictures (``blind``) or of twice the rooms (``more``)."""

    @abstractmethod
    def see(self, model: Any, seed: int) -> dict[str, float]:
        """Train the tower of a fresh model to see, see ``seeing.py``; what it tells of rooms held out."""

    @abstractmethod
    def prior(self) -> Prior:
        """The trained prior, in this host's settings."""

    @abstractmethod
    def patch(self, model: Any, prior: Prior) -> None:
        """Put a branch in, open from the start."""

    @abstractmethod
    def look(self, model: Any, rows: Any) -> None:
        """Run every clip through the seam once, so that its features are kept."""

    @abstractmethod
    def learn(self, model: Any, rows: Any, seed: int, faster: float) -> list[float]:
        """Train; the order of the rows depends on the seed alone. Returns the loss of each step."""

    @abstractmethod
    def right(self, model: Any, asked: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of each question, whether the model prefers the right one of its two choices."""

    @abstractmethod
    def glance(self, asked: Any) -> dict[str, Any]:
        """The inputs of some held-out questions, to see how far the branch is open."""
