"""Everything that could go wrong with a model, checked before it is touched."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..contracts.errors import CompiledModelError, HostError, MetaModelError
from ..contracts.seams import CHILD, HostAdapter, Seam, SeamPoint
from ..contracts.settings import BranchSettings


def check_model(model: nn.Module) -> nn.Module:
    """Refuse models that are wrapped in a way that would hide or lose the branch."""
    if not isinstance(model, nn.Module):
        raise HostError(f"Expected a torch module, got {type(model).__name__}.")
    name = type(model).__name__
    if name in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
        raise HostError(
            f"The model is wrapped in {name}, which would not see parameters added now. Patch the model before it is "
            "wrapped."
        )
    if name.startswith("FSDP"):
        raise HostError("The model is already sharded (fully_shard). Patch it before it is sharded.")
    _refuse_compiled(model)
    return model


def _refuse_compiled(model: nn.Module) -> None:
    for module_name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CompiledModelError(
                f"{module_name or type(model).__name__} is compiled; hooks added now may be ignored. Patch the model "
                "first, then call torch.compile."
            )


def checked_seam(
    adapter: HostAdapter, base: nn.Module, processor: Any, settings: BranchSettings, *, weights: bool = True
) -> Seam:
    """Everything that could go wrong with the model, checked before it is touched.

    Args:
        adapter: of the host.
        base: the model.
        processor: the host's, or None.
        settings: of the branch.
        weights: whether the model has to have any; without, it can only show which clips it would see.

    Raises:
        HostError, MetaModelError: what is wrong, and what to do.
    """
    seams = adapter.seams(base, processor)
    if len(seams) != 1:
        raise HostError(f"Adapter {adapter.name!r} gave {len(seams)} seams for {type(base).__name__}, expected one.")
    seam = seams[0]
    module = base.get_submodule(seam.path)
    like = base.get_submodule(seam.like) if seam.like else module
    if weights and any(parameter.is_meta for parameter in like.parameters()):
        raise MetaModelError(
            f"{seam.like or seam.path!r} has no weights yet: its parameters lie on the meta device. Load the weights "
            "first; with device_map, keep this module off disk and CPU offload."
        )
    if CHILD in dict(module.named_children()):
        raise HostError(f"{seam.path!r} already has a submodule {CHILD!r} that is no branch.")
    if type(module).forward is nn.Sequential.forward:
        raise HostError(
            f"Adapter {adapter.name!r} gives the branch a home in {seam.path!r}, a {type(module).__name__}, which "
            "would run it as one more layer."
        )
    for point in seam.points:
        _check_point(adapter, base, seam, point)
    if settings.history > 1 and not seam.policy:
        raise HostError(
            f"history={settings.history} is for policies, which act on one observation after the other; host "
            f"{adapter.name!r} is none. Give it a video instead, or leave history at 1."
        )
    if settings.positions != "none" and seam.policy:
        raise HostError(
            f"positions={settings.positions!r} needs pictures with depth and poses, which the policy "
            f"{adapter.name!r} is not shown. Leave it at 'none'."
        )
    return seam


def _check_point(adapter: HostAdapter, base: nn.Module, seam: Seam, point: SeamPoint) -> None:
    if not f"{seam.path}.".startswith(f"{point.path}." if point.path else ""):
        raise HostError(
            f"Adapter {adapter.name!r} has a point at {point.path!r}, from which the branch in {seam.path!r} cannot be "
            "reached: a point must be the branch's home or a module above it."
        )
    owner = base.get_submodule(point.path)
    where = f"{type(owner).__name__} at {point.path!r}" if point.path else type(owner).__name__
    if point.method and not callable(getattr(type(owner), point.method, None)):
        raise HostError(f"Host {adapter.name!r} expects the method {point.method!r}, not found on {where}.")
    if point.method in owner.__dict__:
        raise HostError(
            f"Host {adapter.name!r}: {point.method!r} of {where} was already replaced in this instance, by "
            f"{owner.__dict__[point.method]!r}. Undo that first, or patch before it is done."
        )
