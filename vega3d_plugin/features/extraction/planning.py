"""What an extraction would take, before anything runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...contracts.clips import Clip
from ...contracts.errors import StoreError, near_misses
from ...contracts.priors import Prior
from ..forms import Form, entry_bytes

#: Dense matrix products in bfloat16, in TFLOP/s, as the makers' data sheets have them.
DEVICES = {
    "a100": 312.0, "h100": 989.0, "h200": 989.0, "b200": 2250.0, "l40s": 362.0, "a10": 125.0, "rtx4090": 165.0,
}  # fmt: skip
#: The share of it that large transformers reach.
REACHED = 0.4
#: This machine's CPU, measured now.
HERE = "cpu"


@dataclass(frozen=True)
class Cost:
    """Of one clip.

    Attributes:
        shape: of its feature map; None where that cannot be told without running the prior.
        flops: of the prior, likewise.
        bytes: of its entry, likewise.
    """

    shape: tuple[int, ...] | None
    flops: float | None
    bytes: int | None


def cost_of(prior: Prior, clip: Clip, form: Form, grid: tuple[int, int, int], item: int) -> Cost:
    """What a clip costs: the prior's own code on tensors without content.

    The prior cannot be used afterwards: its weights are let go.

    Args:
        prior: loaded.
        clip: of that size; its pixels do not matter.
        form: in which it is kept.
        grid: that an aligned map is resampled to.
        item: bytes of a number that the prior gives.
    """
    shape, flops = _shape_and_flops(prior, clip.frames)
    if form.aligned:
        kept = (grid[0], prior.feature_dim, grid[1], grid[2])
    elif shape is not None:
        kept = (shape[0], shape[1], shape[2], shape[3])
    else:
        return Cost(None, flops, None)
    return Cost(shape, flops, entry_bytes(kept, form, item))


def _shape_and_flops(prior: Any, frames: Tensor) -> tuple[tuple[int, ...] | None, float | None]:
    nothing = torch.device("meta")
    try:
        # Around the checks of the values, which are not there. Priors of third parties may have no such parts.
        with FlopCounterMode(display=False) as counter, prior.session(nothing):
            shape = tuple(prior.extract(torch.empty(frames.shape, device=nothing)).shape)
        return (shape, float(counter.get_total_flops())) if len(shape) == 4 else (None, None)
    except Exception:
        return None, None


def rate_of(device: str) -> float:
    """FLOP a second that may be expected of a device.

    Args:
        device: a key of :data:`DEVICES`, or :data:`HERE`.

    Raises:
        StoreError: no such device; the message has those that are known.
    """
    if device.lower() == HERE:
        return _measured()
    if device.lower() not in DEVICES:
        known = [*DEVICES, HERE]
        raise StoreError(f"Unknown device {device!r:.40}.{near_misses(device, known)} Known: {', '.join(known)}.")
    return DEVICES[device.lower()] * 1e12 * REACHED


def _measured() -> float:
    """Of one large product in float32, the best of three."""
    side = 2048
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
