"""Tasks of Ray, run in this process: its workers are processes of their own, whose models would have no branch.

The evaluation scripts of Video-3D LLM and VEGA-3D load their model in such a task, one for each GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Done:
    """The result of a task, where Ray has a reference to one."""

    value: Any


@dataclass(frozen=True)
class Task:
    """A function that Ray would run in a worker."""

    function: Callable[..., Any]

    def remote(self, *args: Any, **kwargs: Any) -> Done:
        """Run it now."""
        return Done(self.function(*args, **kwargs))

    def options(self, **resources: Any) -> Task:
        """Resources of the worker, which there is none of."""
        return self


def remote(original: Callable[..., Any], *args: Any, **resources: Any) -> Any:
    """``ray.remote``, with and without resources; actors stay Ray's."""

    def decorate(target: Any) -> Any:
        if inspect.isfunction(target):
            return Task(target)
        return original(**resources)(target) if resources else original(target)

    return decorate(args[0]) if args else decorate


def get(original: Callable[..., Any], given: Any, *args: Any, **kwargs: Any) -> Any:
    """``ray.get`` of one result or of a list of them."""
    if isinstance(given, Done):
        return given.value
    if isinstance(given, list) and given and all(isinstance(item, Done) for item in given):
        return [item.value for item in given]
    return original(given, *args, **kwargs)
