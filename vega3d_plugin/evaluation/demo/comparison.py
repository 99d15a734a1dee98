"""Two models from the same start, trained on the same rows in the same order: one alone, one with the branch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...branch.handle import get_handle
from ...branch.switches import zeroed
from .small_host import EncodedClips

ROWS = 32  # of a step
RATE = 2e-3  # of AdamW
MUON_RATE = 1e-2
Answers = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """A trained model on the held-out rooms.

    Attributes:
        name: of the arm.
        said: of each question, which of its choices the model prefers.
        right: of each question, 1.0 where that is the answer.
        losses: of each training step.
        parameters: that trained.
        seconds: of the training.
    """

    name: str
    said: Answers
    right: NDArray[np.float64]
    losses: list[float] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0


def learn(
    model: Any, rows: EncodedClips, steps: int, seed: int, tick: Callable[[int], None], faster: float = 1.0
) -> list[float]:
    """Train every parameter of a model in place; the order of the rows depends on the seed alone.

    Muon for the matrices, where torch has it, AdamW for the rest: in trials the small host told the camera's motion
    after 80 steps with Muon as well as after 240 with AdamW alone.

    Args:
        model: a host, patched or not.
        rows: to learn from.
        steps: of :data:`ROWS` rows each.
        seed: of the order.
        tick: is told how many steps are done.
        faster: a factor of the learning rates.

    Returns:
        The loss of each step.
    """
    model.train().requires_grad_(True)

    def loss_of(numbers: Tensor) -> Tensor:
        logits = _last_logits(model, rows.batch(numbers, answered=True), 2)
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows.learned[numbers].flatten())

    losses = descend(
        loss_of, list(model.parameters()), optimisers_of(model, faster), len(rows.rows), steps, seed, tick=tick
    )
    model.eval()
    return losses


def descend(
    loss_of: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    optimisers: Sequence[torch.optim.Optimizer],
    count: int,
    steps: int,
    seed: int,
    *,
    rows: int = ROWS,
    warm_up: float | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Train on rows in a drawn order: the rate rises, then falls to nearly nothing; gradients are clipped to length 1.

    Args:
        loss_of: the loss of some rows, by their numbers ``[rows]``.
        parameters: that are trained.
        optimisers: of them.
        count: rows to draw from.
        steps: of ``rows`` rows each.
        seed: of the order.
        rows: of a step.
        warm_up: steps over which the rate rises; default: an eighth of them.
        tick: is told how many steps are done.

    Returns:
        The loss of each step.
    """
    rise = max(1, steps // 8) if warm_up is None else warm_up

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / rise) * max(0.02, 1 - step / steps)

    rates = [torch.optim.lr_scheduler.LambdaLR(optimiser, factor) for optimiser in optimisers]
    draw = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(steps):
        loss = loss_of(torch.randint(count, (rows,), generator=draw))
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.step()
            rate.step()
        losses.append(float(loss.detach()))
        tick(len(losses))
    return losses


def learn_and_judge(
    model: Any,
    name: str,
    rows: EncodedClips,
    test: EncodedClips,
    steps: int,
    seed: int,
    tick: Callable[[int], None],
) -> Arm:
    """Train a model and ask it about the held-out rooms."""
    started = time.perf_counter()
    losses = learn(model, rows, steps, seed, tick)
    seconds = time.perf_counter() - started
    return judged(model, name, test, losses, seconds)


def judged(model: Any, name: str, test: EncodedClips, losses: list[float], seconds: float) -> Arm:
    """What a model says about the held-out rooms."""
    said = answers(model, test)
    right = (test.choices[torch.arange(len(said)), torch.from_numpy(said)] == test.answer).double().numpy()
    return Arm(name, said, right, losses, sum(p.numel() for p in model.parameters()), seconds)


def judged_without_features(model: nn.Module, test: EncodedClips) -> Arm:
    """The patched model with its generative tokens zero: does it use what they say?"""
    with zeroed(model):
        return judged(model, "features zero", test, [], 0.0)


@torch.no_grad()
def answers(model: Any, test: EncodedClips, at_once: int = 64) -> Answers:
    """Of each question, the index of the choice that the model finds likelier."""
    said = [
        _last_logits(model, test.batch(numbers), 1)[:, 0].gather(1, test.choices[numbers]).argmax(dim=1)
        for numbers in torch.arange(len(test.rows)).split(at_once)
    ]
    return torch.cat(said).numpy()


def branch_parameters(model: nn.Module) -> int:
    """Parameters that the branch adds to the host, without the frozen prior's."""
    return sum(p.numel() for p in get_handle(model).parameters())


def _last_logits(model: Any, batch: dict[str, Any], count: int) -> Tensor:
    """``[rows, count, words]``."""
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits[:, -count:].float()


def optimisers_of(model: nn.Module, faster: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, where torch has it, and AdamW for the rest; ``faster``: a factor of their rates."""
    muon = getattr(torch.optim, "Muon", None)
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if muon is not None and parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=faster * RATE, betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if muon is not None:
        found.append(muon(matrices, lr=faster * MUON_RATE, weight_decay=0.01))
    return found
