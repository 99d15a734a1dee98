"""State dictionaries that a script has picked from: whose are they, and what of the branch do they lack?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ...branch.branch import GenerativeBranch
from ...contracts.seams import CHILD

#: What wrappers put before a parameter's name.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.")


def is_state_of(state: Mapping[str, Any], model: nn.Module) -> bool:
    """True when every name is one of ``model``, or would be without what wrappers put before it."""
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return all(isinstance(name, str) and name[len(_lead(name, names)) :] in names for name in state)


def is_branchs(name: Any) -> bool:
    """True for the name of a branch's tensor in a host's state dictionary."""
    return isinstance(name, str) and f".{CHILD}." in f".{name}"


def complete(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary with the tensors of the branch that it lacks, named as its other tensors are.

    Args:
        state: all or some of the model's tensors.
        model: a patched host, or a ``PeftModel`` of one; its names are used as they are.
    """
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    lead = next((_lead(name, names) for name in state), "")
    missing = {}
    for path, module in model.named_modules():
        child = module._modules.get(CHILD)
        if child is None:
            continue
        prefix = f"{path}.{CHILD}." if path else f"{CHILD}."
        missing = {
            f"{lead}{name}": tensor.detach().cpu()
            for name, tensor in child.state_dict(prefix=prefix).items()
            if f"{lead}{name}" not in state and _counts(child, name[len(prefix) :])
        }
    return {**state, **missing}


def _counts(child: nn.Module, name: str) -> bool:
    """Of PEFT's wrapper the trained copies alone: the original is what ``disable_adapter`` shows."""
    return isinstance(child, GenerativeBranch) or not name.startswith("original_module.")


def _lead(name: str, names: Iterable[str]) -> str:
    """What wrappers have put before ``name``."""
    lead = ""
    while name not in names:
        wrapper = next((w for w in WRAPPERS if name.startswith(w)), None)
        if wrapper is None:
            return lead
        lead, name = lead + wrapper, name[len(wrapper) :]
    return lead
