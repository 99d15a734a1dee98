"""The settings of a demo, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .compared import Compared


@dataclass(frozen=True)
class Check:
    """One line of the report: what was checked, whether it holds (None: a figure, not a check), and what was seen."""

    name: str
    passed: bool | None
    seen: str


@dataclass
class Report:
    """What the demo found. ``files`` maps a short name to a path; ``compared`` is None with a host of the user's."""

    checks: list[Check] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    compared: Compared | None = None

    @property
    def passed(self) -> bool:
        """True when no check failed."""
        return all(check.passed is not False for check in self.checks)


@dataclass(frozen=True)
class Job:
    """Settings of the demo.

    Attributes:
        out: folder for everything it leaves.
        host: folder or hub id of a Qwen-VL model; None builds a tiny one.
        prior: a registered prior.
        pretrained: its weights.
        video: the user's own video file; None renders a room.
        question: about that video.
        steps: optimiser steps of each training, by default 120 of 32 questions; of a real host 200 of one question.
        questions: how many questions about a room to train LoRA on.
        rooms: to train the two small models on; half as many are held out. Unused with ``host``.
        seed: of the rooms, the questions and the training.
    """

    out: Path
    host: str | None = None
    prior: str = "small-world"
    pretrained: str | None = None
    video: Path | None = None
    question: str | None = None
    steps: int | None = None
    questions: int = 12
    rooms: int = 60
    seed: int = 0
