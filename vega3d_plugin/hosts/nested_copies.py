"""A branch inside a module that PEFT copies must not be copied once more by itself.

``modules_to_save=["multi_modal_projector", "vega3d"]`` on a patched LLaVA: PEFT copies the projector, the branch in it
too, and then wraps the branch a second time, beside the copy that runs. What trains is then not what runs, and what is
saved cannot be loaded. PEFT offers no hook there, but torch tells of every module that is put into another.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from ..branch.branch import GenerativeBranch
from ..branch.copies import is_wrapper
from ..branch.handle import is_branch
from ..contracts.errors import PatchError
from ..contracts.seams import CHILD

#: PEFT's wrappers of modules that have a branch in them.
_AROUND: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_HOOK: list[RemovableHandle] = []


class CopiedBranchError(PatchError):
    """PEFT is asked to copy a branch twice: with the module it is in, and by itself."""


def watch_copies() -> None:
    """From now on PEFT cannot wrap a branch twice in this process."""
    if not _HOOK:
        _HOOK.append(register_module_module_registration_hook(_registered))


def _registered(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    if name != "original_module" or module is None or not _is_peft_wrapper(parent):
        return
    if isinstance(module, GenerativeBranch):
        if any(_within(module)):
            # Wrappers of a model that is gone may still wait to be collected.
            gc.collect()
        for around in _within(module):
            raise CopiedBranchError(_twice(around, module))
        return
    for inner in module.modules():
        child = inner._modules.get(CHILD)
        if child is not None and is_branch(child):
            if is_wrapper(child):
                raise CopiedBranchError(_later(module, child))
            _AROUND.add(parent)


def _within(branch: GenerativeBranch) -> Iterator[nn.Module]:
    """Wrappers whose copies hold this branch."""
    return (around for around in list(_AROUND) if any(part is branch for part in around.modules()))


def _is_peft_wrapper(module: nn.Module) -> bool:
    peft: Any = sys.modules.get("peft.utils.other")
    return peft is not None and isinstance(module, peft.ModulesToSaveWrapper)


def _twice(around: nn.Module, branch: GenerativeBranch) -> str:
    original: Any = around.original_module
    kind, path = type(original).__name__, branch.seam.path
    return (
        f"modules_to_save names both {CHILD!r} and a module that the branch is in ({kind}, on the way to {path!r}). "
        "PEFT copies that module with the branch, so the branch trains and is saved with it; a second copy of the "
        f"branch would train without being run. Leave {CHILD!r} out of modules_to_save, and build the model again: "
        "PEFT has changed this one in part. An adapter that was saved with both names loads onto a host that is not "
        "patched: PeftModel.from_pretrained(host, FOLDER), then vega3d.load_pretrained(model, FOLDER)."
    )


def _later(module: nn.Module, child: Any) -> str:
    adapters = ", ".join(repr(name) for name in child.modules_to_save)
    return (
        f"modules_to_save names {type(module).__name__}, which holds a branch that another adapter ({adapters}) copies "
        f"by itself. Name {CHILD!r} alone in both adapters, or the module around it in both; and build the model again."
    )
