"""How far the gate lets the host's own tokens through, by kind of clip, while a model trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...branch.branch import GenerativeBranch
from ...branch.fusers.gated import GatedFuser
from ...branch.handle import get_handle, is_patched

KINDS = ("image", "video", "scene")


class GateMonitor:
    """Sums the gates of every forward pass; a few numbers, whatever the length of the run.

    Args:
        model: patched or not; without a branch, or with a fuser that has no gate, there is nothing to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.branch: GenerativeBranch | None = None
        if is_patched(model) and isinstance(get_handle(model).branch.fuser, GatedFuser):
            self.branch = get_handle(model).branch
        self.totals: Tensor | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> GateMonitor:
        if self.branch is not None:
            self._hooks = [
                self.branch.register_forward_pre_hook(self._before),
                self.branch.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.branch is not None:
            self.branch.gates = None

    def take(self, device: torch.device) -> Tensor:
        """Number, sum and sum of squares of the gates by kind since the last call: float64 ``[3, 3]``.

        The same shape in every process, so that they can be added up.
        """
        totals, self.totals = self.totals, None
        return (torch.zeros(3, 3, dtype=torch.float64) if totals is None else totals).to(device)

    def _before(self, branch: GenerativeBranch, args: tuple[Any, ...]) -> None:
        # Not while someone else records them (`vega3d.record_gates`).
        if branch.training and branch.gates is None:
            branch.gates = []

    def _after(self, branch: GenerativeBranch, args: tuple[Any, ...], output: Any) -> None:
        gates = branch.gates
        if gates is None or not branch.training:
            return
        branch.gates = None
        clips = args[1] if len(args) > 1 else ()
        for clip, gate in zip(clips, gates, strict=False):
            values = gate.double()
            row = torch.stack([values.new_tensor(float(values.numel())), values.sum(), (values**2).sum()])
            if self.totals is None:
                self.totals = values.new_zeros(3, 3)
            self.totals[KINDS.index(clip.kind)] += row


def gate_logs(totals: Tensor) -> dict[str, float]:
    """Mean and spread (standard deviation over tokens) of the gates, for each kind of clip that occurred."""
    logs = {}
    for kind, (count, total, squares) in zip(KINDS, totals.tolist(), strict=True):
        if count:
            mean = total / count
            logs[f"gate/{kind}/mean"] = round(mean, 6)
            logs[f"gate/{kind}/spread"] = round(max(squares / count - mean**2, 0.0) ** 0.5, 6)
    return logs
