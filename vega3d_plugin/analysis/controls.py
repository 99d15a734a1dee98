"""Controls: feature maps that know less than a prior, judged as it is, and what would be said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..priors.base import Prior
from ..priors.diffusion import DiffusionPrior
from ..priors.frames import resize_framed
from .contexts import JudgedViews, per_view
from .protocols import Other

#: How a control is called, in the order of tables, and what it shows.
CONTROLS: Mapping[str, str] = {
    "views shuffled": "the second view's features are another view's: what is left comes from no shared content",
    "same position": "the same place in both frames, without searching: what a motionless camera would give",
    "untrained twin": "the same class and size with random weights: what is left was not learned",
    "VAE alone": "the latents that the denoiser is given, without noise: what the VAE knows",
    "pixels": "the pixels of each token, 4x4 colours",
    "position only": "where a token lies in its frame, and nothing else",
    "offset and noise": "noise around the prior's own mean token: the part of a cosine that is shared offset",
    "random": "independent noise: chance",
}
#: Those that are computed of the prior's own features.
_OWN = ("views shuffled", "same position", "offset and noise")
_WAVES = 6
_PATCH = 4


@dataclass(frozen=True, eq=False)
class Absent:
    """A control that there is not. Attributes: ``reason``, one sentence."""

    reason: str


def position_only(views: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """``[V, 24, h, w]``: sines and cosines of row and column, the same for all views."""
    axes = [(torch.arange(side, device=device) + 0.5) / side for side in grid]
    waves = torch.arange(1, _WAVES + 1, device=device) * torch.pi
    rows, columns = (torch.cat([torch.sin(p), torch.cos(p)], dim=0) for p in (waves[:, None] * axis for axis in axes))
    both = torch.cat([rows[:, :, None].expand(-1, *grid), columns[:, None, :].expand(-1, *grid)])
    return both.expand(views, -1, -1, -1)


def pixel_features(prior: Prior, frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[V, 48, h, w]``: the mean colours of 4x4 parts of each token, of what the prior sees of frames."""
    seen = resize_framed(frames.float(), prior.framing((frames.shape[-2], frames.shape[-1])))
    return F.pixel_unshuffle(F.adaptive_avg_pool2d(seen, (grid[0] * _PATCH, grid[1] * _PATCH)), _PATCH)


def latent_features(prior: Prior, views: JudgedViews, grid: tuple[int, int], device: torch.device) -> Tensor | Absent:
    """The latents that a generator's denoiser is given, without noise, gathered for each token ``[V, c, h, w]``."""
    if not isinstance(prior, DiffusionPrior):
        return Absent("it is no generator with a VAE before it")
    latents = per_view(prior, prior.encode(views.clip.to(device)).to(device), len(views.clip), views.places)
    factors = [latents.shape[2 + axis] / grid[axis] for axis in (0, 1)]
    if factors[0] == factors[1] and factors[0].is_integer():
        return F.pixel_unshuffle(latents, int(factors[0]))
    return F.adaptive_avg_pool2d(latents, grid)


def random_features(views: int, channels: int, grid: tuple[int, int], seed: int) -> Tensor:
    """Standard normal ``[V, C, h, w]``."""
    return torch.randn(views, channels, *grid, generator=torch.Generator().manual_seed(seed))


def offset_and_noise(features: Tensor, seed: int) -> Tensor:
    """Noise around the mean token of ``features`` ``[V, C, h, w]``, with each channel's own deviation."""
    deviation, mean = torch.std_mean(features, dim=(0, 2, 3), keepdim=True)
    noise = random_features(features.shape[0], features.shape[1], (features.shape[2], features.shape[3]), seed)
    return mean + deviation * noise.to(features)


def another_view(views: int, seed: int) -> Other:
    """For :class:`~.protocols.Protocol`: in the place of the second view one that is neither of the two, by chance.

    Of two views, the first stands for the second.
    """

    def other(first: int, second: int) -> int:
        rest = [view for view in range(views) if view not in (first, second)]
        if not rest:
            return first
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first * views + second)
        return rest[int(torch.randint(len(rest), (1,), generator=generator))]

    return other


def feature_controls(
    prior: Prior,
    twin: Callable[[], Prior | Absent],
    views: JudgedViews,
    features: Tensor,
    seed: int,
    of_twin: Callable[[Prior], Tensor],
) -> Mapping[str, Callable[[], Tensor | Absent]]:
    """What makes the features of each control that has its own, by name.

    Args:
        prior: whose features are judged.
        twin: makes its untrained twin, once.
        views: the judged views.
        features: the prior's, ``[V, C, h, w]``.
        seed: of what is drawn.
        of_twin: extracts a twin's features.
    """
    grid = (features.shape[2], features.shape[3])
    count, device = features.shape[0], features.device
    frames = views.clip[torch.tensor(views.places)].to(device)

    def twins() -> Tensor | Absent:
        made = twin()
        return made if isinstance(made, Absent) else of_twin(made)

    return {
        "untrained twin": twins,
        "VAE alone": lambda: latent_features(prior, views, grid, device),
        "pixels": lambda: pixel_features(prior, frames, grid),
        "position only": lambda: position_only(count, grid, device),
        "offset and noise": lambda: offset_and_noise(features, seed),
        "random": lambda: random_features(count, features.shape[1], grid, seed + 1).to(device),
    }
