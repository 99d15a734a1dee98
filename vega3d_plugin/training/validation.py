"""Validation while a model trains: the loss on rows that are held out, and the checkpoint at which it was lowest."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts.errors import RowError
from .manifest import checkpoints, step_of
from .run_log import read_log

#: Name of the validation loss in the log.
LOSS = "eval_loss"


@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest validation loss. Attributes: ``checkpoint``; ``step``; ``loss``."""

    checkpoint: Path
    step: int
    loss: float


def best_checkpoint(output: Path) -> Best | None:
    """The checkpoint in a run's folder at which the validation loss was lowest; None where none has one."""
    losses = {int(step): loss for step, loss in read_log(output).points(LOSS) if math.isfinite(loss)}
    found = [
        Best(checkpoint, step, losses[step])
        for checkpoint in checkpoints(output)
        if (step := step_of(checkpoint)) in losses
    ]
    return min(found, key=lambda best: (best.loss, best.step), default=None)


def evaluate_with_every_save() -> Any:
    """A callback of Trainer: no checkpoint without a validation loss, that of the last step among them."""
    from transformers import TrainerCallback

    class EvaluateWithEverySave(TrainerCallback):  # type: ignore[misc]
        """See :func:`evaluate_with_every_save`."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if control.should_save:
                control.should_evaluate = True
            return control

    return EvaluateWithEverySave()


def overlap(train: Any, held_out: Any, most: int = 20_000) -> int:
    """How many rows of the validation data are, word for word, rows of the training data.

    Args:
        train, held_out: rows.
        most: rows of the training data that are looked at, from the first.
    """
    wanted = {_text(held_out, index) for index in range(len(held_out))}
    seen = {_text(train, index) for index in range(min(most, len(train)))}
    return len((wanted & seen) - {""})


def _text(rows: Any, index: int) -> str:
    try:
        return json.dumps(rows[index], sort_keys=True, default=str)
    except RowError:
        return ""
