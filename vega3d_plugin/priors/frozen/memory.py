"""Out of memory, in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from ...contracts.errors import PriorError
from ...contracts.settings import PriorSettings

# What torch's allocators say on devices that have no error class of their own.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory")


class PriorMemoryError(PriorError):
    """The prior does not fit into the device's memory; the message names the settings that lower it."""


class HeldPrior(Protocol):
    """What advice depends on: settings, size in pixels, models by name, and where and in what they compute."""

    settings: PriorSettings
    size: tuple[int, int]
    models: dict[str, nn.Module]

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""
        ...


@contextmanager
def explain_out_of_memory(prior: HeldPrior) -> Iterator[None]:
    """Turn an allocator's error into a :class:`PriorMemoryError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PriorMemoryError(
            f"Out of memory in prior {prior.settings.name!r} on {prior.device} ({first}). {_advice(prior)}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)


def _advice(prior: HeldPrior) -> str:
    s = prior.settings
    ways = []
    if s.context == "frame":
        ways.append(f"chunk_frames=1 (it is {s.chunk_frames or f'set by max_tokens={s.max_tokens}'})")
    else:
        ways.append(f"a smaller window (it is {s.window})")
        if s.context == "views" and "vae" in prior.models:
            ways.append("chunk_frames=1 for the VAE")
    ways.append(f"a smaller size (it is {prior.size[0]}x{prior.size[1]})")
    if prior.dtype == torch.float32 and prior.device.type != "cpu":
        ways.append("dtype='bfloat16'")
    if not s.offload and prior.device.type != "cpu":
        ways.append("offload=True (moves the prior to the CPU between calls)")
    return f"These settings lower it: {'; '.join(ways)}. With features from a store, the prior does not run."
