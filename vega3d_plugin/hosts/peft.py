"""Living with PEFT, without importing it: a PeftModel has imported it already."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn


def is_peft_model(model: nn.Module) -> bool:
    """True for a ``PeftModel``, judged by its structure."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_model(model: nn.Module) -> nn.Module:
    """The host inside a ``PeftModel``, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model  # type: ignore[operator]


def active_adapter(model: Any) -> str | None:
    """Name of the adapter that trains and is saved: of a ``PeftModel``, of the model inside one, or of a model with
    adapters of its own (``model.add_adapter`` of transformers); None for a model without any.
    """
    if is_peft_model(model):
        return str(model.active_adapter)
    if not isinstance(vars(model).get("peft_config"), dict):
        return None
    layer: Any = sys.modules["peft.tuners.tuners_utils"].BaseTunerLayer
    names = (module.active_adapters for module in model.modules() if isinstance(module, layer))
    return next((str(active[0]) for active in names if active), None)


def save_with_adapter(model: Any, parent: nn.Module, name: str) -> None:
    """Make ``parent.<name>`` trainable and part of every file that the active adapter writes.

    What ``modules_to_save=[name]`` in the ``LoraConfig`` would have done, had the module existed then.
    """
    wrapper: Any = sys.modules["peft"].utils.ModulesToSaveWrapper
    adapter = active_adapter(model)
    config = model.peft_config[adapter]
    # The name is there already when the adapter was saved with the branch and loaded without it.
    config.modules_to_save = [*(m for m in config.modules_to_save or [] if m != name), name]
    wrapped = wrapper(getattr(parent, name), adapter)
    wrapped.set_adapter(adapter)
    parent.add_module(name, wrapped)


def copied_around(path: str, names: Iterable[str]) -> list[str]:
    """Of ``modules_to_save``, the names by which PEFT copies the module at ``path`` or one around it."""
    steps = path.split(".") if path else []
    above = [".".join(steps[: count + 1]) for count in range(len(steps))]
    # PEFT's own rule.
    return [name for name in names if any(module.endswith(name) for module in above)]


def forget_module(model: Any, name: str) -> None:
    """Undo :func:`save_with_adapter` in the adapters' configurations."""
    for config in model.peft_config.values():
        saved = [module for module in config.modules_to_save or [] if module != name]
        config.modules_to_save = saved or None
