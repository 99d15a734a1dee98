"""What can be told of a branch at the first step of every optimiser of torch: gradients came, and steps will move it.

A branch can be outside the graph without anybody being told: a script calls the parts of a host by itself and passes
the seam by, or the optimiser was given a copy of the branch that does not run. Optimisers skip parameters without a
gradient. So one hook on all optimisers looks at each optimiser's first step; it costs nothing afterwards.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from ..contracts.errors import FrozenBranchError, Vega3dWarning

#: Branches, each a ``GenerativeBranch``.
_BRANCHES: weakref.WeakSet[Any] = weakref.WeakSet()
_CHECKED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
_HOOK: list[RemovableHandle] = []


def watch_first_steps(branch: Any) -> None:
    """Have the first step of every optimiser that was given this branch check that gradients have come to it."""
    _BRANCHES.add(branch)
    if not _HOOK:
        _HOOK.append(register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if optimizer in _CHECKED:
        return
    given = [p for group in optimizer.param_groups for p in group["params"]]
    if all(p.grad is None for p in given):
        # No step yet: some trainers step once to make the optimiser's state, or compute gradients in a closure.
        return
    _CHECKED.add(optimizer)
    mine = {id(p) for p in given}
    for branch in list(_BRANCHES):
        # FSDP may leave nothing of a parameter in this process.
        own = [p for p in branch.parameters() if p.requires_grad and id(p) in mine and p.numel()]
        if not (own and branch.training and branch.trainable and "disabled" not in branch.switches()):
            continue
        if all(p.grad is None for p in own):
            # Checked again if the caller mends it and goes on.
            _CHECKED.discard(optimizer)
            raise FrozenBranchError(_message(optimizer, branch))
        _tell_rounded(optimizer, {id(p) for p in own})


def _tell_rounded(optimizer: torch.optim.Optimizer, own: set[int]) -> None:
    """Warn where a step of the learning rate's size is rounded away: Adam and its kin move each weight by about that.

    Sharded optimisers with float32 copies of their own do not hold the branch's parameters, so they are not met here.
    """
    for group in optimizer.param_groups:
        rate = float(group.get("initial_lr", group.get("lr", 0.0)))
        for p in group["params"]:
            if id(p) not in own or p.ndim < 2 or p.dtype not in (torch.bfloat16, torch.float16):
                continue
            size = float(p.detach().float().abs().mean())
            if 0 < rate < size * torch.finfo(p.dtype).eps / 2:
                warnings.warn(
                    f"The branch trains in {str(p.dtype).removeprefix('torch.')} without float32 copies, at a learning "
                    f"rate of {rate:g}. Its weights are about {size:.1g}, where this type cannot hold steps under "
                    f"{size * torch.finfo(p.dtype).eps / 2:.1g}: most are rounded away, and the branch hardly moves. "
                    "Keep the branch in float32 (vega3d.get_handle(model).branch.float(), before the optimiser is "
                    "made), or raise its learning rate.",
                    Vega3dWarning,
                    stacklevel=5,
                )
                return


def _message(optimizer: torch.optim.Optimizer, branch: Any) -> str:
    seam = branch.seam
    points = " or ".join(repr(str(point)) for point in seam.points if point.role == "fuse") or repr(seam.path)
    return (
        f"{type(optimizer).__name__} is about to make its first step, and other parameters have gradients, but the "
        f"branch of host {branch.host!r} at {seam.path!r} got none, so it would not learn. Either no image or video "
        f"passed {points}, because the script calls the host's parts by itself; or the loss does not depend on the "
        "visual tokens; or the optimiser was given a copy of the branch that does not run (take "
        "vega3d.get_handle(model).parameters() after the last wrapper was put on). `vega3d doctor` checks the host; "
        "vega3d.get_handle(model).freeze() leaves the branch as it is on purpose."
    )
