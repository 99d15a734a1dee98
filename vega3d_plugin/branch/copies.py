"""Modules that PEFT has copied (``modules_to_save``): which of the copies runs.

PEFT puts a ``ModulesToSaveWrapper`` in the place of a module. It holds the module as it was, ``original_module``, and
one copy per adapter, of which the active adapter's runs. Told by structure, so that PEFT need not be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def is_wrapper(module: nn.Module) -> bool:
    """True for what PEFT puts in the place of a module that it copies."""
    return "original_module" in module._modules and "modules_to_save" in module._modules


def copies(wrapper: nn.Module) -> list[nn.Module]:
    """The module as it was, and all adapters' copies of it."""
    saved: Any = wrapper.modules_to_save
    original: Any = wrapper.original_module
    return [original, *saved.values()]


def running(module: nn.Module) -> nn.Module:
    """What PEFT's own forward calls: of a wrapper the active adapter's copy, or the original; else the module."""
    if not is_wrapper(module):
        return module
    saved: Any = module.modules_to_save
    original: Any = module.original_module
    names: Any = module.active_adapters
    # PEFT's own forward runs the original while adapters are disabled.
    if names and names[0] in saved and not module.disable_adapters:
        return running(saved[names[0]])
    return running(original)


def running_modules(root: nn.Module) -> Iterator[nn.Module]:
    """As ``root.modules()``, without the copies that do not run."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        if is_wrapper(module):
            others = [child for name, child in module._modules.items() if name not in _OWN]
            children = [running(module), *others]
        else:
            children = list(module._modules.values())
        waiting += [child for child in reversed(children) if child is not None]


def at_path(root: nn.Module, path: str) -> list[nn.Module]:
    """The module at a dotted path; where a copied module is on the way or at its end, the one in each of the copies.

    Raises:
        AttributeError: nothing is there.
    """
    found = [root]
    for step in path.split(".") if path else ():
        found = [part.get_submodule(step) for module in found for part in _unwrapped(module)]
    return [part for module in found for part in _unwrapped(module)]


def plain_path(root: nn.Module, path: str) -> str:
    """A dotted path without the steps that PEFT's wrappers add to it: the path as it was before PEFT came."""
    module, steps, waiting = root, [], path.split(".") if path else []
    while waiting:
        step = waiting.pop(0)
        if is_wrapper(module) and step in _OWN:
            if step == "modules_to_save":
                step = f"{step}.{waiting.pop(0)}"
        else:
            steps.append(step)
        module = module.get_submodule(step)
    return ".".join(steps)


def _unwrapped(module: nn.Module) -> list[nn.Module]:
    return [part for copy in copies(module) for part in _unwrapped(copy)] if is_wrapper(module) else [module]


_OWN = ("original_module", "modules_to_save")
