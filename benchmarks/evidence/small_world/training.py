"""Flow matching on rendered worlds: steps, checkpoints, curves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .curriculum import Batch, Batches, curriculum
from .model import build_transformer, matrices
from .quick import predict_quickly

STATE = "state.pt"
CURVES = "curves.jsonl"


@dataclass(frozen=True)
class TrainingSettings:
    """All that a run's weights depend on.

    Attributes:
        steps: of the optimizer.
        clips: of a batch.
        width, blocks, patch: of the transformer.
        rate: peak learning rate; 100 steps of warm-up, a linear fall over the last fifth.
        seed: of weights, worlds and noise.
    """

    steps: int = 8000
    clips: int = 32
    width: int = 128
    blocks: int = 6
    patch: int = 3
    rate: float = 2e-3
    seed: int = 0


class Run:
    """A training run that lives in a folder.

    Args:
        folder: for its state and curves; a state that is there is gone on with.
        settings: of a new run; an old one must have been started with the same.
    """

    def __init__(self, folder: Path, settings: TrainingSettings) -> None:
        self.folder, self.settings, self.step = folder, settings, 0
        self.size = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch}
        self.transformer = build_transformer(seed=settings.seed, **self.size)
        inner, outer = matrices(self.transformer)
        self.optimizers: list[Any] = [
            torch.optim.Muon(inner, lr=settings.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=settings.rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).is_file():
            self._resume()

    def _resume(self) -> None:
        state = read_state(self.folder)
        if state["settings"] != asdict(self.settings):
            raise SystemExit(
                f"{self.folder / STATE} was started with {state['settings']}, not with {asdict(self.settings)}. "
                "Give the same options, or another folder."
            )
        self.transformer.load_state_dict(state["transformer"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def save(self) -> None:
        """Write the state whole, in place of the last one."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "transformer": self.transformer.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        part = self.folder / f"{STATE}.part"
        torch.save(state, part)
        part.replace(self.folder / STATE)

    def train(
        self,
        *,
        until: int | None = None,
        every: int = 250,
        workers: int = 1,
        report: Callable[[Run, dict[str, float]], None] | None = None,
    ) -> None:
        """Go on to the last step, or to ``until``; save and report every so many steps and at the end."""
        settings = self.settings
        stop = min(until or settings.steps, settings.steps)
        batches = Batches(curriculum(settings.steps), settings.clips, settings.seed + 1, self.step, stop)
        loader = DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
        losses: list[float] = []
        began = time.perf_counter()
        for batch in loader:
            losses.append(self._update(batch))
            self.step += 1
            if self.step % every == 0 or self.step == stop:
                seconds = (time.perf_counter() - began) / len(losses)
                figures = {"step": self.step, "loss": sum(losses) / len(losses), "seconds_per_step": seconds}
                self.save()
                if report is not None:
                    report(self, figures)
                losses, began = [], time.perf_counter()

    def _update(self, batch: Batch) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate * self._warmth()
        loss = flow_loss(self.transformer, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _warmth(self) -> float:
        return min(1.0, (self.step + 1) / 100, (self.settings.steps - self.step) / (0.2 * self.settings.steps))

    def note(self, figures: dict[str, Any]) -> None:
        """Add a line to the curves."""
        with (self.folder / CURVES).open("a") as file:
            file.write(json.dumps(figures) + "\n")


def read_run(folder: Path) -> Run:
    """The run that a folder holds, with the settings that it was started with."""
    return Run(folder, TrainingSettings(**read_state(folder)["settings"]))


def read_state(folder: Path) -> dict[str, Any]:
    """What :meth:`Run.save` wrote."""
    file = folder / STATE
    if not file.is_file():
        raise SystemExit(f"{folder} holds no run: it has no {STATE}. Start one with `train {folder}`.")
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        raise SystemExit(f"{file} is damaged ({type(error).__name__}). Start again in another folder.") from error
    return state


def flow_loss(transformer: Any, batch: Batch) -> Tensor:
    """Squared error of the predicted velocity ``noise - latents``, of frames with noise to speak of.

    The transformer predicts clean latents, whose error is the velocity's times the share of noise: so no block has to
    carry the noise to the end.
    """
    with torch.autocast("cpu", torch.bfloat16):
        clean = predict_quickly(transformer, batch.noisy, batch.sigmas)
    error = (clean.float() - batch.latents).square().mean(dim=(1, 3, 4))
    weight = torch.where(batch.sigmas > 0.1, batch.sigmas.clamp_min(0.3) ** -2, 0.0)
    return (weight * error).sum() / (weight > 0).sum()
