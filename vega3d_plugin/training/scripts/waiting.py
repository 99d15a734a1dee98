"""Models that are not complete when they are built: something is done before they first run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

#: Both, because hosts encode images in a ``generate`` of their own before they run ``forward``.
METHODS = ("forward", "generate")


def before_first_call(model: nn.Module, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` before the first ``forward`` or ``generate`` of this one model.

    Args:
        model: its class and other models stay as they are.
        act: what to do, once.

    Returns:
        Takes it back, before the first call or after it. What something else has put over it stays.
    """
    own = vars(model)
    # Those that lie in the instance are accelerate's, which has spread the model over devices.
    given = {name: own.get(name) for name in METHODS if callable(getattr(model, name, None))}
    placed: dict[str, Any] = {}

    def take_back() -> None:
        for name, call in placed.items():
            if own.get(name) is call:
                own.pop(name)
                if given[name] is not None:
                    own[name] = given[name]
        placed.clear()

    def first(name: str) -> Callable[..., Any]:
        original = getattr(model, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if placed:
                take_back()
                act()
            return original(*args, **kwargs)

        return call

    placed.update({name: first(name) for name in given})
    own.update(placed)
    return take_back


__all__ = ["before_first_call"]
