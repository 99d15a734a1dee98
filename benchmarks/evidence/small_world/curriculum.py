"""What is trained on when: worlds that grow harder, and how much noise each frame gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .model import to_latents
from .worlds import WorldSettings, draw_worlds


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        until: the step it ends before.
        worlds: what is drawn.
        copying: share of the clips with one nearly clean frame, the others at 0.4 to ``most``: what is in the clean
            frame is the best guess. The other clips have one level for all frames, 0.05 to ``most``.
        most: noise.
        also_clean: in copying clips, how likely each of the other frames is to be nearly clean, too.
    """

    until: int
    worlds: WorldSettings
    copying: float
    most: float = 0.95
    also_clean: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Clean latents ``[B, 3, T, H, W]``, noise of the same shape, and its share ``[B, T]``."""

    latents: Tensor
    noise: Tensor
    sigmas: Tensor

    @property
    def noisy(self) -> Tensor:
        """Latents on the straight line to the noise."""
        share = self.sigmas[:, None, :, None, None]
        return (1 - share) * self.latents + share * self.noise


def curriculum(steps: int) -> tuple[Stage, ...]:
    """Pairs that are equal, then shifted by whole tokens, then by anything, then layers with parallax and pictures of
    less contrast, then longer clips.

    To copy what is at the same place is learnt at once; to look for it nearby, from there; the rest follows.
    """
    flat = {"layers": (0, 0), "slant": 0.0, "zoom": 0.0}
    pale = (0.3, 1.0)
    return (
        Stage(steps * 2 // 100, WorldSettings(motion=(0.0, 0.0), **flat), 1.0),
        Stage(steps * 10 // 100, WorldSettings(motion=(0.0, 5.0), whole=3, **flat), 1.0),
        Stage(steps * 25 // 100, WorldSettings(motion=(0.0, 6.0), **flat), 0.8),
        Stage(steps * 65 // 100, WorldSettings(motion=(0.0, 5.0), contrast=pale), 0.6),
        Stage(steps, WorldSettings(motion=(0.0, 4.0), frames=4, contrast=pale), 0.6, most=1.0, also_clean=0.33),
    )


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage that a step belongs to."""
    return next((stage for stage in stages if step < stage.until), stages[-1])


def draw_batch(stage: Stage, clips: int, seed: int) -> Batch:
    """Worlds and noise: the same for the same arguments."""
    latents = to_latents(draw_worlds(stage.worlds, clips, seed).render())
    generator = torch.Generator().manual_seed(seed + 500_000_000)
    steps = latents.shape[2]
    clean = torch.randint(steps, (clips, 1), generator=generator)
    level = torch.rand(clips, 1, generator=generator)
    levels = torch.rand(clips, steps, generator=generator)
    is_copied = torch.rand(clips, 1, generator=generator) < stage.copying
    noise = torch.randn(latents.shape, generator=generator)
    is_clean = (torch.arange(steps) == clean) | (torch.rand(clips, steps, generator=generator) < stage.also_clean)
    copied = torch.where(is_clean, 0.1 * levels, 0.4 + (stage.most - 0.4) * levels)
    together = (0.05 + (stage.most - 0.05) * level).expand(-1, steps)
    return Batch(latents, noise, torch.where(is_copied, copied, together))


class Batches(IterableDataset[Batch]):
    """The batches of steps ``start`` to ``stop``; each depends on its step alone, so that a resumed run sees the same.

    ``clips`` are of pairs; of longer clips a batch has fewer, so that all batches have as many frames.
    """

    def __init__(self, stages: tuple[Stage, ...], clips: int, seed: int, start: int, stop: int) -> None:
        self.stages, self.clips, self.seed = stages, clips, seed
        self.steps = range(start, stop)

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for step in self.steps:
            stage = stage_at(self.stages, step)
            yield draw_batch(stage, max(1, self.clips * 2 // stage.worlds.frames), self.seed * 1_000_000 + step)
