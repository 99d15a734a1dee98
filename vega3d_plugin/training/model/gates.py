"""How far the gate lets the host's own tokens through, by kind of clip, while a model trains."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...branch.blocks import block
from ...branch.branch import GenerativeBranch
from ...branch.fusers.gated import GatedFuser
from ...branch.handle import get_handle, is_patched
from ...contracts.clips import Clip

KINDS = ("image", "video", "scene")


class GateMonitor:
    """Sums the gates of every forward pass in training, whichever thread makes it; a few numbers, however long the run.

    Args:
        model: patched or not; without a branch, or with a fuser that has no gate, there is nothing to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.branch: GenerativeBranch | None = None
        if is_patched(model) and isinstance(get_handle(model).branch.fuser, GatedFuser):
            self.branch = get_handle(model).branch
        self.totals: Tensor | None = None
        self._lock = threading.Lock()
        self._block = ExitStack()

    def __enter__(self) -> GateMonitor:
        if self.branch is not None:
            self._block.enter_context(block(self.branch.key, "gates", self._add, all_threads=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()

    def take(self, device: torch.device) -> Tensor:
        """Number, sum and sum of squares of the gates by kind since the last call: float64 ``[3, 3]``.

        The same shape in every process, so that they can be added up.
        """
        with self._lock:
            totals, self.totals = self.totals, None
        return (torch.zeros(3, 3, dtype=torch.float64) if totals is None else totals).to(device)

    def _add(self, clips: Sequence[Clip], gates: Sequence[Tensor]) -> None:
        if self.branch is None or not self.branch.training:
            return
        for clip, gate in zip(clips, gates, strict=True):
            values = gate.double()
            row = torch.stack([values.new_tensor(float(values.numel())), values.sum(), (values**2).sum()])
            with self._lock:
                if self.totals is None:
                    self.totals = values.new_zeros(3, 3)
                self.totals[KINDS.index(clip.kind)] += row.to(self.totals.device)


def gate_logs(totals: Tensor) -> dict[str, float]:
    """Mean and spread (standard deviation over tokens) of the gates, for each kind of clip that occurred."""
    logs = {}
    for kind, (count, total, squares) in zip(KINDS, totals.tolist(), strict=True):
        if count:
            mean = total / count
            logs[f"gate/{kind}/mean"] = round(mean, 6)
            logs[f"gate/{kind}/spread"] = round(max(squares / count - mean**2, 0.0) ** 0.5, 6)
    return logs
