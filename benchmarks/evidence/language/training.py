"""Train one model on the questions, and answer the held-out ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vega3d_plugin.scenes.rendered import COLOURS

from .host import MEAN, STD, Encoded, answer_logits, describe

#: Boxes, and none.
THINGS = 1 + len(COLOURS)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, a linear warm-up over a twentieth of the steps, then a cosine to zero."""

    steps: int
    rate: float
    rows: int = 32
    branch_rate: float = 1e-3


@dataclass
class Curve:
    """What was noted while training: ``(step, loss, accuracy on validation rows)``."""

    points: list[tuple[int, float, float]] = field(default_factory=list)


def learn(
    model: Any,
    rows: Encoded,
    schedule: Schedule,
    seed: int,
    *,
    validation: Encoded | None = None,
    blind: bool = False,
    every: int = 100,
    tell: Callable[[str], None] = lambda line: None,
) -> Curve:
    """Train in place. The order of rows depends on the seed alone, so it is that of every arm.

    Args:
        model: a host, patched or not, with what trains requiring gradients.
        rows: to train on.
        schedule: see there.
        seed: of the order of rows.
        validation: asked every ``every`` steps, and at the end.
        blind: grey pictures.
        every: steps between two points of the curve.
        tell: takes a line for each point.
    """
    model.train()
    branch = {id(p) for name, p in model.named_parameters() if "vega3d" in name}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in branch], "lr": schedule.rate},
        {"params": [p for p in trained if id(p) in branch], "lr": schedule.branch_rate},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, schedule.steps))
    draw = torch.Generator().manual_seed(seed)
    curve, losses, start = Curve(), [], time.monotonic()
    for step in range(1, schedule.steps + 1):
        batch = rows.batch(torch.randint(len(rows.rows), (schedule.rows,), generator=draw), blind=blind)
        loss = nn.functional.cross_entropy(answer_logits(model, batch), batch.answer)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        rates.step()
        losses.append(float(loss.detach()))
        if step % every == 0 or step == schedule.steps:
            right = float(answered(model, validation, blind=blind).mean()) if validation is not None else float("nan")
            curve.points.append((step, float(np.mean(losses[-every:])), right))
            tell(f"step {step}: loss {curve.points[-1][1]:.3f}, validation {right:.3f}, {time.monotonic() - start:.0f} s")
    return curve


def _factor(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / steps))))


def learn_names(model: Any, rows: Encoded, steps: int, seed: int, rate: float = 1e-3) -> float:
    """Teach the vision tower which box each patch shows, as the towers of real hosts can name what they see.

    Returns:
        The share of patches named rightly over the last fifty steps.
    """
    tower = model.model.vision_tower if hasattr(model, "model") else model.vision_tower
    head = nn.Linear(tower.config.hidden_size, THINGS)
    optimiser = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, steps))
    draw, right = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        numbers = torch.randint(len(rows.rows.pictures), (32,), generator=draw)
        pixels = (rows.rows.pictures[numbers].flatten(0, 1).float() / 255 - MEAN) / STD
        said = head(tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:])
        truth = rows.rows.things[numbers].flatten(0, 1).flatten(1)
        # Most patches show no box.
        weights = torch.where(torch.arange(THINGS) == 0, 0.2, 1.0)
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(said.flatten(0, 1), truth.flatten(), weight=weights).backward()
        optimiser.step()
        rates.step()
        right.append(float((said.argmax(-1) == truth).float().mean()))
    return float(np.mean(right[-50:]))


def learn_places(
    model: Any, rows: Encoded, steps: int, seed: int, rate: float = 2e-3, tell: Callable[[str], None] = lambda line: None
) -> float:
    """Teach the host to describe pictures: which box is where, as captions teach real hosts.

    Returns:
        The share of cells told rightly over the last fifty steps.
    """
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, steps))
    draw, right = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        numbers = torch.randint(len(rows.rows.pictures), (32,), generator=draw)
        batch, labels = describe(rows.rows, numbers, draw)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values,
            use_cache=False,
        ).logits[:, :-1]  # fmt: skip
        told = labels[:, 1:]
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.flatten(0, 1), told.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        asked = told >= 0
        right.append(float((logits.argmax(-1)[asked] == told[asked]).float().mean()))
        if (step + 1) % 100 == 0:
            tell(f"places, step {step + 1}: {np.mean(right[-50:]):.3f}")
    return float(np.mean(right[-50:]))


@torch.no_grad()
def answered(model: Any, rows: Encoded, *, blind: bool = False, at_once: int = 64) -> np.ndarray[Any, Any]:
    """Of each row, whether the right one of its two choices is the likelier one."""
    was = model.training
    model.eval()
    right: list[Tensor] = []
    for numbers in torch.arange(len(rows.rows)).split(at_once):
        batch = rows.batch(numbers, blind=blind)
        logits = answer_logits(model, batch).gather(1, batch.choices)
        right.append(batch.choices.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0] == batch.answer)
    model.train(was)
    return torch.cat(right).numpy()


def trainable(model: Any) -> int:
    """Parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def freeze(parameters: Iterable[nn.Parameter]) -> None:
    """They no longer train."""
    for parameter in parameters:
        parameter.requires_grad_(False)
