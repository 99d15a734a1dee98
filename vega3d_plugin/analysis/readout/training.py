"""Training a read-out on frozen features, and judging it on scenes it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import AnalysisError
from .depth_heads import FURTHEST, DepthHead
from .heads import Prediction, Size, build_head
from .losses import camera_loss, dense_loss, depth_loss
from .metrics import depth_metrics, point_error
from .poses import decode_extrinsics, pose_auc, relative_pose_errors
from .sampling import ClipTruth, Start, clip_truth, sample_views
from .truth import SceneTruth

#: Called with (stage, steps done, steps in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How a read-out is trained.

    Attributes:
        size: ``small``, or ``full`` for VidFM3D's head.
        steps: optimiser steps.
        batch: clips a step.
        lr: peak of the learning rate, reached after a tenth of the steps; it falls along a cosine to 1e-6. Published
            1e-4 for ``full``.
        betas, weight_decay: of AdamW, as published.
        start: ``any``: clips begin anywhere in a scene; ``first``: at its first view, as published.
        clips: clips of each held-out scene that it is judged on.
        depth_steps, depth_lr, depth_batch: of probe3d's linear depth head; the learning rate is the published one.
        seed: of the initial weights, the clips and their order.
    """

    size: Size = "small"
    steps: int = 600
    batch: int = 4
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    start: Start = "any"
    clips: int = 8
    depth_steps: int = 600
    depth_lr: float = 5e-4
    depth_batch: int = 8
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FeatureScene:
    """A scene's features and their truth.

    Attributes:
        truth: on the grid of the predictions.
        features: ``[T', C, h, w]`` float32, on the CPU.
        steps: for each frame that begins a feature step, that step; frames without usable depth are left out.
    """

    truth: SceneTruth
    features: Tensor
    steps: dict[int, int]

    def of(self, views: Sequence[int]) -> Tensor:
        """Features of views, ``[S, C, h, w]``."""
        return self.features[[self.steps[view] for view in views]]


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation of each channel over the scenes that are trained on.

    It changes nothing that a linear layer could not undo, but spares it thousands of steps where channels differ in
    scale by orders of magnitude, as in deep transformer blocks.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, scenes: Sequence[FeatureScene]) -> Standard:
        """Over all tokens of the scenes."""
        tokens = torch.cat([scene.features.transpose(0, 1).flatten(1) for scene in scenes], dim=1).double()
        std = tokens.std(dim=1) if tokens.shape[1] > 1 else torch.ones(len(tokens), dtype=torch.double)
        # A channel that never changes says nothing, and must not be blown up either.
        still = std <= 1e-6 * tokens.abs().amax(dim=1).clamp_min(1e-30)
        return cls(tokens.mean(dim=1).float(), torch.where(still, 1.0, std).float())

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
    features = torch.stack([scene.of(truth.views) for scene, truth in zip(scenes, truths, strict=True)])
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
    progress: Progress | None = None,
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
        truths = [clip_truth(s.truth, sample_views(sorted(s.steps), rng, settings.start)) for s in drawn]
        batch = stack_clips(drawn, truths, device)
        loss = total_loss(head(batch.features, tuple(batch.valid.shape[-2:])), batch)
        _step(loss, head, optimizer, step)
        schedule.step()
        if progress is not None:
            progress("read-out", step + 1, settings.steps)
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


@dataclass(frozen=True, eq=False)
class SceneScores:
    """How a read-out did on one held-out scene: values by metric, and examples to look at.

    Attributes:
        scene: its name.
        values: by metric, see ``results.METRICS``.
        examples: (view, true depth, predicted depth), the maps ``[h, w]`` in metres; 0 where there is none.
    """

    scene: str
    values: dict[str, float]
    examples: tuple[tuple[int, Tensor, Tensor], ...] = ()


@torch.no_grad()
def judge_head(
    head: nn.Module, scenes: Sequence[FeatureScene], settings: TrainingSettings, device: torch.device
) -> list[SceneScores]:
    """Judge a trained read-out, scene by scene."""
    return [_judge_scene(head, scene, settings, device) for scene in scenes]


def _judge_scene(
    head: nn.Module, scene: FeatureScene, settings: TrainingSettings, device: torch.device
) -> SceneScores:
    # The same clips for every prior and control, whatever the order of the scenes.
    rng = np.random.default_rng([settings.seed, int(scene.truth.fingerprint[:8], 16)])
    truths = [
        clip_truth(scene.truth, sample_views(sorted(scene.steps), rng, settings.start)) for _ in range(settings.clips)
    ]
    errors: dict[str, list[float]] = {"points": [], "depth": []}
    rotations, translations = [], []
    for truth in truths:
        batch = stack_clips([scene], [truth], device)
        prediction: Prediction = head(batch.features, tuple(batch.valid.shape[-2:]))
        sure = batch.valid.float()
        errors["points"].append(point_error(prediction.points[0].cpu(), truth.points, truth.valid.float()))
        depth = dense_loss(prediction.depth, batch.depth, torch.ones_like(sure), batch.valid)
        errors["depth"].append(float(depth.total))
        found = decode_extrinsics(prediction.cameras[-1].float().cpu())
        rotation, translation = relative_pose_errors(found, truth.extrinsics[None])
        rotations.append(rotation)
        translations.append(translation)
    values = {name: float(np.mean(terms)) for name, terms in errors.items()}
    rotation, translation = torch.cat(rotations), torch.cat(translations)
    values |= {f"auc{t}": pose_auc(rotation, translation, t) for t in (5, 30)}
    return SceneScores(scene.truth.name, values)


def train_depth_head(
    scenes: Sequence[FeatureScene],
    settings: TrainingSettings,
    device: torch.device,
    progress: Progress | None = None,
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
    everything = [(scene, view) for scene in scenes for view in sorted(scene.steps)]
    for step in range(steps):
        drawn = [everything[i] for i in rng.integers(len(everything), size=settings.depth_batch)]
        features = torch.cat([scene.of([view]) for scene, view in drawn]).to(device)
        true = torch.stack([scene.truth.depth[view] for scene, view in drawn])[:, None].float().to(device)
        _step(depth_loss(head([features]), true), head, optimizer, step)
        schedule.step()
        if progress is not None:
            progress("depth", step + 1, steps)
    return head.eval()


@torch.no_grad()
def judge_depth_head(
    head: DepthHead, scenes: Sequence[FeatureScene], device: torch.device, examples: int = 0
) -> list[SceneScores]:
    """Judge a linear depth head on every usable view of some scenes; truth beyond 10 m does not count."""
    found = []
    for scene in scenes:
        views = sorted(scene.steps)
        true = scene.truth.depth[views][:, None].float()
        true = torch.where(true > FURTHEST, 0, true)
        predicted = head([scene.of(views).to(device)]).cpu()
        plain, fitted = (depth_metrics(predicted, true, scale_invariant=fit) for fit in (False, True))
        values = {
            "d1": float(plain.d1.mean()),
            "rmse": float(plain.rmse.mean()),
            "d1_si": float(fitted.d1.mean()),
            "rmse_si": float(fitted.rmse.mean()),
        }
        spread = np.linspace(0, len(views) - 1, min(examples, len(views))).round().astype(int)
        shown = tuple((views[i], true[i, 0], predicted[i, 0]) for i in spread)
        found.append(SceneScores(scene.truth.name, values, shown))
    return found


def settings_dict(settings: TrainingSettings) -> dict[str, Any]:
    """Plain values, as JSON has them."""
    from dataclasses import asdict

    return {**asdict(settings), "betas": list(settings.betas)}
