"""Training a read-out on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts.errors import AnalysisError, UnknownNameError
from .depth_heads import FURTHEST, DepthHead
from .heads import SIZES, Prediction, Size, build_head
from .losses import camera_loss, dense_loss, depth_loss
from .sampling import ClipTruth, Start, clip_truth, sample_views
from .truth import SceneTruth

#: Told how many steps are done.
Tick = Callable[[int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How read-outs are trained.

    Attributes:
        size: ``small``, or ``full`` for VidFM3D's head of 384 M parameters.
        steps: optimiser steps.
        batch: clips a step.
        lr: peak of the learning rate, reached after a tenth of the steps; then it falls along a cosine to 1e-6.
        betas, weight_decay: of AdamW, as published.
        start: ``any``: clips begin anywhere in a scene; ``first``: at its first view, as published.
        depth_steps, depth_batch, depth_lr: of probe3d's linear depth head. It was published with 5e-4 for tens of
            thousands of steps; a few hundred need more, and end at the same depth.
        seed: of the initial weights, of the clips and their order.
    """

    size: Size = "small"
    steps: int = 600
    batch: int = 4
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    start: Start = "any"
    depth_steps: int = 300
    depth_batch: int = 8
    depth_lr: float = 2e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr", "depth_steps", "depth_batch", "depth_lr"):
            if not getattr(self, name) > 0:
                raise AnalysisError(f"Training needs {name} above 0, got {getattr(self, name)}.")
        if self.size not in SIZES:
            raise UnknownNameError("size of a read-out", self.size, SIZES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {**asdict(self), "betas": list(self.betas)}


#: The published learning rates of the full head, and of the linear depth head.
FULL_LR, FULL_DEPTH_LR = 1e-4, 5e-4


@dataclass(frozen=True, eq=False)
class FeatureScene:
    """A scene's features and what is true of its views.

    Attributes:
        features: ``[V, C, h, w]`` float32, on the CPU.
        truth: of the views, on the grid of the predictions.
        fine: of the views, at four times the grid of the features, for the linear depth head.
    """

    features: Tensor
    truth: SceneTruth
    fine: SceneTruth


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation of each channel over the scenes that are trained on.

    It changes nothing that a linear layer could not undo, but spares it thousands of steps where channels differ in
    scale by orders of magnitude, as in deep transformer blocks.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Standard:
        """Over all tokens of maps ``[V, C, h, w]``."""
        count = sum(each.numel() // each.shape[1] for each in maps)
        mean = torch.stack([each.double().sum(dim=(0, 2, 3)) for each in maps]).sum(dim=0) / count
        squares = [(each.double() - mean[:, None, None]).square().sum(dim=(0, 2, 3)) for each in maps]
        std = (torch.stack(squares).sum(dim=0) / count).sqrt()
        # A channel that never changes says nothing, and must not be blown up either.
        still = std <= 1e-6 * mean.abs().clamp_min(1e-30)
        return cls(mean.float(), torch.where(still, 1.0, std).float())

    def __call__(self, features: Tensor) -> Tensor:
        """``[..., C, h, w]`` to the same."""
        mean, std = (values.to(features.device)[:, None, None] for values in (self.mean, self.std))
        return (features - mean) / std


def warmup_cosine(step: float, steps: float, warmup: float, floor: float = 0.01) -> float:
    """probe3d's factor of the learning rate: linear from ``floor`` to 1, then a quarter of a cosine back to it.

    Source: ``evals/utils/optim.py::cosine_decay_linear_warmup``.

    Args:
        step: optimiser steps done, or epochs.
        steps: of the whole run.
        warmup: of the rise; less than ``steps``.
        floor: the smallest factor.
    """
    if step <= warmup:
        return (1 - floor) * (step / warmup) + floor
    return (1 - floor) * math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) + floor


def half_cosine(step: int, steps: int, warmup: int, lr: float, last: float = 1e-6) -> float:
    """VidFM3D's factor: linear to 1, then half a cosine down to ``last / lr``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return last / lr + (1 - last / lr) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips with their truth, stacked, on one device."""

    features: Tensor
    points: Tensor
    depth: Tensor
    valid: Tensor
    cameras: Tensor


def stack_clips(scenes: Sequence[FeatureScene], truths: Sequence[ClipTruth], device: torch.device) -> Batch:
    """One clip of each scene, as :class:`Batch`."""
    features = torch.stack([scene.features[list(truth.views)] for scene, truth in zip(scenes, truths, strict=True)])
    parts = [
        torch.stack([getattr(truth, name) for truth in truths]) for name in ("points", "depth", "valid", "cameras")
    ]
    return Batch(*(tensor.to(device) for tensor in (features, *parts)))


def total_loss(prediction: Prediction, batch: Batch) -> Tensor:
    """Points, depth and camera with the published weights of 1 each; true depth is certain, so its confidence is 1."""
    sure = torch.ones_like(batch.valid, dtype=torch.float32)
    points = dense_loss(prediction.points, batch.points, sure, batch.valid, normalise=True)
    depth = dense_loss(prediction.depth, batch.depth, sure, batch.valid)
    return points.total + depth.total + camera_loss(prediction.cameras, batch.cameras).total


def train_head(
    scenes: Sequence[FeatureScene],
    settings: TrainingSettings,
    device: torch.device,
    tick: Tick = lambda step: None,
) -> nn.Module:
    """Train a read-out on clips of some scenes.

    Raises:
        AnalysisError: a loss that is not finite; the message says at which step.
    """
    head = build_head(scenes[0].features.shape[1], settings.size, settings.seed).to(device).train()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    warmup = max(1, settings.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: half_cosine(step, settings.steps, warmup, settings.lr)
    )
    rng = np.random.default_rng(settings.seed)
    for step in range(settings.steps):
        drawn = [scenes[i] for i in rng.integers(len(scenes), size=settings.batch)]
        truths = [clip_truth(s.truth, sample_views(s.truth.usable, rng, settings.start)) for s in drawn]
        batch = stack_clips(drawn, truths, device)
        loss = total_loss(head(batch.features, tuple(batch.valid.shape[-2:])), batch)
        _step(loss, head, optimizer, step)
        schedule.step()
        tick(step + 1)
    return head.eval()


def _step(loss: Tensor, head: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss.backward()
    # Nothing is clipped in the published code; a short run with a high learning rate needs it.
    norm = nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    if not math.isfinite(float(norm)):
        raise AnalysisError(
            f"The read-out's gradient is {float(norm)} at step {step}, its loss {float(loss):.4g}. Lower the learning "
            "rate, and check the features for very large values."
        )
    optimizer.step()


def train_depth_head(
    scenes: Sequence[FeatureScene],
    settings: TrainingSettings,
    device: torch.device,
    tick: Tick = lambda step: None,
) -> DepthHead:
    """Train probe3d's linear head: one view's features to metres, at four times their resolution."""
    head = DepthHead([scenes[0].features.shape[1]])
    head.reset(settings.seed)
    head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.depth_lr)
    steps = settings.depth_steps
    # Published: 1.5 epochs of 10.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, 0.15 * steps))
    rng = np.random.default_rng(settings.seed)
    everything = [(scene, view) for scene in scenes for view in scene.truth.usable if _near(scene.fine.depth[view])]
    if not everything:
        raise AnalysisError(
            f"No view has depth within {FURTHEST:g} m, beyond which the linear depth head does not see."
        )
    for step in range(steps):
        drawn = [everything[i] for i in rng.integers(len(everything), size=settings.depth_batch)]
        features = torch.stack([scene.features[view] for scene, view in drawn]).to(device)
        true = torch.stack([scene.fine.depth[view] for scene, view in drawn])[:, None].float().to(device)
        _step(depth_loss(head([features]), true), head, optimizer, step)
        schedule.step()
        tick(step + 1)
    return head.eval()


def _near(depth: Tensor) -> bool:
    return bool(((depth > 0) & (depth <= FURTHEST)).any())
