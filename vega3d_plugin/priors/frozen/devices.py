"""Where a prior runs: the device that the user named, and what it can compute in."""

from __future__ import annotations

import torch

from ...contracts.errors import PriorError


def usable(device: str) -> torch.device:
    """The device of this name.

    Raises:
        PriorError: there is none, or torch cannot use it; the message says why.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PriorError(
            f"The device {device!r} cannot be used: {reason}. Use 'cpu', or leave the device out."
        ) from error


def has_bfloat16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 itself, without emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return bool((torch.ones(1, dtype=torch.bfloat16, device=device) + 1).item() == 2)
    except (RuntimeError, TypeError):
        return False
