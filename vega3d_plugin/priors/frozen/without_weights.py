"""Building a model whose weights will be read, without making them first, and in one thread alone.

``accelerate.init_empty_weights`` puts a function of its own into ``nn.Module`` while it is open, for all threads. A
host that is built meanwhile in another thread loses its weights, and where two such blocks overlap, the function may
stay there for good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)


def without_weights(build: Callable[[], Model]) -> Model:
    """What ``build`` makes, its layers' weights on the meta device: without memory and without values.

    Buffers have their values, which no checkpoint holds.
    """
    with _EmptyOnMeta():
        model = build()
    if any(buffer.is_meta for buffer in model.buffers()):
        # One that was made empty and filled afterwards.
        model = build()
    return model


class _EmptyOnMeta(TorchFunctionMode):
    """``torch.empty``, with which layers make their weights, makes tensors on the meta device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See torch."""
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
