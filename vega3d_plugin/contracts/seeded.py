"""Random weights from a seed, without the process's own random numbers.

``torch.manual_seed`` inside ``torch.random.fork_rng`` is for one thread: of two that build models at once, each draws
from the other's stream, and the one that ends last puts back a state that nobody had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# By name: methods of tensors, functions of torch, and those initialisers that torch announces as a whole, so that what
# they call cannot be seen; transformers puts its own in their place, under the same names.
_DRAWING = {
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_",
    "bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm",
    "kaiming_uniform_",
}  # fmt: skip


def seeded(seed: int) -> AbstractContextManager[Any]:
    """Within it, and in this thread alone, torch draws the numbers that ``torch.manual_seed(seed)`` would give."""
    return _Draws(seed)


class _Draws(TorchFunctionMode):
    """Hands a generator of its own to whatever draws without one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See torch."""
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") in _DRAWING and given.get("generator") is None:
            tensor = next((arg for arg in args if isinstance(arg, Tensor)), None)
            named = given.get("device") or torch.get_default_device()
            device = torch.device(named) if tensor is None else tensor.device
            if device.type != "meta":
                given["generator"] = self._generator(device)
        return func(*args, **given)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]
