"""Does a model find moved points again? Nearest neighbours between the tokens of two frames, and controls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import block_outputs, build_transformer, to_latents
from .worlds import Worlds, WorldSettings, draw_worlds

TEST_SEED = 900_000_000
# Both frames as a prior sees them; a clean frame beside a noisy one, as in training.
LEVELS: dict[str, tuple[float, float]] = {"0.3": (0.3, 0.3), "0.6": (0.6, 0.6), "0.05/0.7": (0.05, 0.7)}
MOVING = WorldSettings(layers=(1, 3), motion=(2.0, 5.0))
# As far as the tokens of photographs are from each other: those at hand in scikit-image, 24x24 pixels.
PALE = replace(MOVING, contrast=(0.3, 1.0))


class MovedPoints:
    """Pairs of frames, and where the centres of the first one's tokens are in the other; those moved by over a token.

    Args:
        settings: of the worlds; the first and the last frame of each clip are compared.
        count: worlds.
        patch: pixels per token, odd.
        seed: of worlds and noise; other worlds than those of training.
    """

    def __init__(
        self, settings: WorldSettings = MOVING, count: int = 96, patch: int = 3, seed: int = TEST_SEED
    ) -> None:
        worlds = draw_worlds(settings, count, seed)
        self.patch = patch
        self.latents = to_latents(worlds.render())
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(seed + 1))
        self.centres, self.targets, self.counted = _tokens(worlds, patch)
        self.depths = worlds.depths()[:, 0, patch // 2 :: patch, patch // 2 :: patch].flatten(1)

    def noisy(self, levels: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Latents with noise, and the noise of each frame ``[B, T]``; frames between the two get the first's."""
        sigmas = torch.full(self.latents.shape[:3:2], levels[0])
        sigmas[:, -1] = levels[1]
        share = sigmas[:, None, :, None, None]
        return (1 - share) * self.latents + share * self.noise, sigmas

    def recall(self, tokens: Tensor) -> float:
        """Share of the moved points whose most similar token lies within one token of the truth.

        Args:
            tokens: ``[B, T, h * w, C]``; the clip's mean is taken away, then cosine similarity.
        """
        return self.share(self.hits(tokens))

    def hits(self, tokens: Tensor) -> Tensor:
        """Which tokens of the first frame are found again, ``[B, h * w]``; arguments as for :meth:`recall`."""
        tokens = F.normalize(tokens - tokens.mean(dim=(1, 2), keepdim=True), dim=-1)
        return self.near(self.centres[(tokens[:, 0] @ tokens[:, -1].transpose(1, 2)).argmax(-1)])

    def near(self, guesses: Tensor) -> Tensor:
        """Which guesses ``[B, h * w, 2]``, in pixels, lie within one token of the truth, ``[B, h * w]``."""
        return (guesses - self.targets).norm(dim=-1) <= self.patch

    def share(self, hits: Tensor) -> float:
        """Of the moved points."""
        return float(hits[self.counted].float().mean())

    def by_world(self, hits: Tensor) -> Tensor:
        """Hits among the moved points of each world, ``[B]``."""
        return (hits & self.counted).sum(1).double()

    def patches(self, latents: Tensor) -> Tensor:
        """The pixels of each token ``[B, T, h * w, C]``."""
        batch, _, steps = latents.shape[:3]
        rows = F.unfold(latents.transpose(1, 2).flatten(0, 1), self.patch, stride=self.patch)
        return rows.transpose(1, 2).unflatten(0, (batch, steps))


def _tokens(worlds: Worlds, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of the tokens ``[h * w, 2]``, where they are in the last frame, and which count, both ``[B, h * w]``."""
    per_side = worlds.size // patch
    position, seen = worlds.follow(0, worlds.cameras.shape[1] - 1)
    middle = torch.arange(per_side) * patch + patch // 2
    pixels = (middle[:, None] * worlds.size + middle).flatten()
    y, x = torch.meshgrid(middle + 0.5, middle + 0.5, indexing="ij")
    centres = torch.stack([x, y], dim=-1).flatten(0, 1)
    targets = position[:, pixels]
    moved = (targets - centres).norm(dim=-1) > patch
    return centres, targets, moved & seen[:, pixels]


def recall_by_block(transformer: Any, points: MovedPoints, levels: tuple[float, float]) -> list[float]:
    """Recall behind each block of a transformer, with noise on both frames."""
    noisy, sigmas = points.noisy(levels)
    return [points.recall(tokens) for tokens in block_outputs(transformer, noisy, sigmas)]


def controls(points: MovedPoints, levels: tuple[float, float], **size: int) -> dict[str, Any]:
    """What recall is worth: pixels with and without that noise, the same position, three untrained twins."""
    noisy, _ = points.noisy(levels)
    twins = [recall_by_block(build_transformer(seed=1000 + i, **size), points, levels) for i in range(3)]
    return {
        "pixels": points.recall(points.patches(noisy)),
        "clean_pixels": points.recall(points.patches(points.latents)),
        "same_position": points.share(points.near(points.centres.expand_as(points.targets))),
        "twins": [sum(column) / len(twins) for column in zip(*twins, strict=True)],
        "points": int(points.counted.sum()),
    }
