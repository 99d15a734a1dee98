"""The flow-matching noise level at one timestep, as Wan's UniPC scheduler gives it to the released code."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...contracts.errors import PriorError

TRAIN_TIMESTEPS = 1000


class NoiseLevel(NamedTuple):
    """Attributes: ``tau``, the timestep that the denoiser is given; ``sigma``, the share of noise."""

    tau: float
    sigma: float


@lru_cache(maxsize=32)
def noise_level(timestep: int, shift: float = 5.0) -> NoiseLevel:
    """The level of the schedule that is nearest to ``timestep``.

    Args:
        timestep: 0 to 1000. Timestep 300 with shift 5 gives tau 299, sigma 0.2999238.
        shift: of the schedule, > 0.

    Raises:
        PriorError: out of range.
    """
    if not 0 <= timestep <= TRAIN_TIMESTEPS or shift <= 0:
        raise PriorError(f"Expected a timestep in [0, {TRAIN_TIMESTEPS}] and a shift > 0, got {timestep} and {shift}.")
    sigmas, timesteps = schedule(shift)
    tau = int(timesteps[int(torch.argmin((timesteps - timestep).abs()))])
    matches = (timesteps == tau).nonzero().flatten()
    # The released scheduler looks a timestep up again in its own list, and takes the second of several equal ones.
    index = int(matches[1] if len(matches) > 1 else matches[0])
    return NoiseLevel(tau, float(sigmas[index]))


def schedule(shift: float) -> tuple[Tensor, Tensor]:
    """Sigmas (float32 ``[1000]``) and timesteps (int64 ``[1000]``) of the full schedule, from noise to data."""
    start = float(torch.tensor(1 - 1 / TRAIN_TIMESTEPS, dtype=torch.float32))
    s = torch.linspace(start, 0.0, TRAIN_TIMESTEPS + 1, dtype=torch.float64)[:-1]
    sigmas = shift * s / (1 + (shift - 1) * s)
    return sigmas.float(), (sigmas * TRAIN_TIMESTEPS).long()


def add_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """``(1 - sigma) * latents + sigma * noise``."""
    return (1 - sigma) * latents + sigma * noise


def draw_noise(shape: tuple[int, ...], seed: int, frames: range) -> Tensor:
    """Standard normal noise ``[len(frames), *shape]``, float32 on the CPU.

    Each frame has its own draw, which depends on the seed and on its index in the clip alone: so features depend
    neither on the batch nor on chunking. Noise shared by all frames would mark image positions and fake multi-view
    agreement.
    """
    draws = []
    for frame in frames:
        # A large odd stride keeps the streams of neighbouring seeds apart.
        generator = torch.Generator("cpu").manual_seed((seed * 1_000_003 + frame) % 2**63)
        draws.append(torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu"))
    return torch.stack(draws)
