"""A run ends at the first number that is none, before a step is made with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts.errors import TrainError
from .manifest import find_checkpoint
from .model.shares import WATCHED


def finite_gradients(output: str | Path) -> Any:
    """A callback of Trainer: raises before the optimiser makes a step with NaN or infinite gradients.

    Args:
        output: folder of the run, to name its last checkpoint.
    """
    from transformers import TrainerCallback

    class FiniteGradients(TrainerCallback):  # type: ignore[misc]
        """See :func:`finite_gradients`."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model: nn.Module = kwargs["model"]
            wrong = not_finite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            if wrong:
                raise TrainError(
                    f"Step {state.global_step + 1}: the gradient of {len(wrong)} parameter(s) is NaN or infinite, the "
                    f"first is {wrong[0]!r}. The run has been stopped before a step was made with it. "
                    f"{_way_out(output)}"
                )

    return FiniteGradients()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity. One transfer to the CPU, however many there are."""
    if not tensors:
        return []
    # A sum is finite only where all are; one that overflows by itself is looked at again.
    sums = torch.stack([tensor.detach().float().abs().sum().cpu() for tensor in tensors.values()])
    if bool(torch.isfinite(sums).all()):
        return []
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor.detach()).all())]


def check_logged(logs: Mapping[str, Any], step: int, output: str | Path) -> None:
    """Raise for a loss, gradient, share or gate in the log that is NaN or infinite.

    Raises:
        TrainError: names them, the setting to change, and the last whole checkpoint.
    """
    watched = [name for name in logs if name in ("loss", "grad_norm", "eval_loss") or name.startswith(WATCHED)]
    wrong = [name for name in watched if not math.isfinite(float(logs[name]))]
    if wrong:
        raise TrainError(
            f"Step {step}: {', '.join(wrong)} is NaN or infinite. The run has been stopped. {_way_out(output)}"
        )


def _way_out(output: str | Path) -> str:
    last = find_checkpoint(Path(output))
    kept = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
    return (
        f"{kept} Most often the numbers overflow: set "
        "host.dtype=bfloat16 (or float32) in place of float16, or lower train.learning_rate."
    )
