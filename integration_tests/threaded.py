"""Requests to one patched model from several threads, for every host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hosts import Batch, Host
from support.together import Rendezvous, order_of_calls
from torch import Tensor, nn

import vega3d

Answer = Callable[[nn.Module, Batch], Tensor]


def other_pictures(batch: Batch, by: int = 2) -> Batch:
    """The same prompt with other pictures: rolled, so that they stay in range and padding stays padding."""

    def rolled(value: Any) -> Any:
        if isinstance(value, list):
            return [rolled(item) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # Rows of packed patches trade places; pictures are shifted sideways.
        return value.roll(by, dims=0 if value.ndim == 2 else -1)

    return {key: rolled(value) for key, value in batch.items()}


def requests(host: Host) -> list[Batch]:
    """Two prompts with pictures, and one of words."""
    batch = host.batch()
    return [batch, other_pictures(batch), host.text_batch()]


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a request that hold pixels."""
    values = (item for value in batch.values() for item in (value if isinstance(value, list) else [value]))
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def meeting_points(model: nn.Module, batch: Batch) -> tuple[str, str]:
    """Where a thread waits for another: just before tokens are first fused, and just before the host's forward ends.

    With words alone: at the beginning of the forward, and just before it ends.
    """
    entry = vega3d.get_handle(model).seam.entry

    def run() -> None:
        with torch.no_grad():
            model(**batch)

    order = order_of_calls(model, run)
    fused = next((place for place, name in enumerate(order) if "vega3d" in name.split(".")), None)
    once = [place for place, name in enumerate(order) if order.count(name) == 1 and name != entry]
    inside = [place for place in once if order[place].startswith(f"{entry}." if entry else "")]
    before = inside[0] if fused is None else max(place for place in once if place < fused)
    return order[before], order[inside[-1]]


def at_once(model: nn.Module, first: Batch, second: Batch, answer: Answer) -> list[Any]:
    """Both answers, computed in two threads that meet at :func:`meeting_points`; or what was raised."""
    stops = [meeting_points(model, batch) for batch in (first, second)]
    jobs = [lambda batch=batch: answer(model, batch) for batch in (first, second)]
    return Rendezvous(model, stops).run(*jobs)
