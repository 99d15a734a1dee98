"""What the branch does to the tokens while a model trains, by kind of clip."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...branch.blocks import block
from ...branch.branch import GenerativeBranch
from ...branch.handle import get_handle, is_patched
from ...contracts.clips import Clip
from ...contracts.shares import Shares

KINDS = ("image", "video", "scene")
#: What is summed of each kind: see :class:`~vega3d_plugin.contracts.shares.Shares`.
QUANTITIES = ("generative", "change", "gate", "scale")
#: Names in the log that are NaN or infinite where a branch is.
WATCHED = ("share/", "change/", "gate/", "branch/")


class ShareMonitor:
    """Sums the shares of every forward pass in training, whichever thread makes it: a few numbers for a long run.

    Args:
        model: patched or not; without a branch there is nothing to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.branch: GenerativeBranch | None = get_handle(model).branch if is_patched(model) else None
        self.totals: Tensor | None = None
        self._lock = threading.Lock()
        self._block = ExitStack()

    def __enter__(self) -> ShareMonitor:
        if self.branch is not None:
            self._block.enter_context(block(self.branch.key, "shares", self._add, all_threads=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()

    def take(self, device: torch.device) -> Tensor:
        """Number, sum and sum of squares of each quantity by kind since the last call: float64 ``[3, 4, 3]``.

        The same shape in every process, so that they can be added up.
        """
        with self._lock:
            totals, self.totals = self.totals, None
        return (torch.zeros(len(KINDS), len(QUANTITIES), 3, dtype=torch.float64) if totals is None else totals).to(
            device
        )

    def _add(self, clips: Sequence[Clip], shares: Sequence[Shares]) -> None:
        if self.branch is None or not self.branch.training:
            return
        for clip, found in zip(clips, shares, strict=True):
            row = torch.stack([_sums(getattr(found, name), found.change) for name in QUANTITIES])
            with self._lock:
                if self.totals is None:
                    self.totals = row.new_zeros(len(KINDS), *row.shape)
                self.totals[KINDS.index(clip.kind)] += row.to(self.totals.device)


def _sums(values: Tensor | float | None, like: Tensor) -> Tensor:
    if values is None:
        return like.new_zeros(3, dtype=torch.float64)
    values = values.double() if isinstance(values, Tensor) else like.new_tensor(values, dtype=torch.float64)
    return torch.stack([values.new_tensor(float(values.numel())), values.sum(), (values**2).sum()])


def share_logs(totals: Tensor) -> dict[str, float]:
    """What goes into the log, from :meth:`ShareMonitor.take`.

    For each kind of clip that occurred: ``share/KIND/host`` and ``share/KIND/generative`` (means of the effective
    shares over tokens), ``share/KIND/spread`` (their standard deviation), ``change/KIND`` (mean relative change of a
    token) and, as a detail, ``gate/KIND/mean`` (the raw gate). ``branch/a`` is the learned scale. What a fuser does not
    have is left out.
    """
    logs: dict[str, float] = {}
    scales: list[tuple[float, float]] = []
    for kind, quantities in zip(KINDS, totals.tolist(), strict=True):
        found = dict(zip(QUANTITIES, quantities, strict=True))
        count, total, squares = found["generative"]
        if count:
            mean = total / count
            logs[f"share/{kind}/host"] = _rounded(1 - mean)
            logs[f"share/{kind}/generative"] = _rounded(mean)
            logs[f"share/{kind}/spread"] = _rounded(max(squares / count - mean**2, 0.0) ** 0.5)
        for name, quantity in ((f"change/{kind}", "change"), (f"gate/{kind}/mean", "gate")):
            count, total, _ = found[quantity]
            if count:
                logs[name] = _rounded(total / count)
        count, total, _ = found["scale"]
        if count:
            scales.append((count, total))
    if scales:
        logs["branch/a"] = _rounded(sum(total for _, total in scales) / sum(count for count, _ in scales))
    return logs


def _rounded(value: float) -> float:
    return round(value, 8)
