"""The Wan prior at toy size, and what tests compare of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import vega3d
from vega3d_plugin.priors.wan.prior import WanPrior

# Small enough for a CPU, and no square, so that height and width cannot be swapped unseen.
SIZE = (32, 48)
MAP = (2, 3)


def fresh(**settings: Any) -> WanPrior:
    prior = vega3d.load_prior("tiny-wan", **{"size": SIZE, **settings})
    assert isinstance(prior, WanPrior)
    return prior


@cache
def tiny(**settings: Any) -> WanPrior:
    """One for all tests that only look."""
    return fresh(**settings)


def frames(count: int = 3, height: int = 40, width: int = 50) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def close(a: Tensor, b: Tensor) -> None:
    """Equal up to the order of sums, which changes with batch size and with where weights lie in memory."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
