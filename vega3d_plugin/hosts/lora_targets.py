"""What a LoRA pattern hits on a model: checked before PEFT changes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..branch.handle import get_handle, is_patched
from ..contracts.errors import SettingsError, near_misses
from ..contracts.priors import Prior
from ..contracts.seams import CHILD
from .peft import base_model


class LoraTargetError(SettingsError):
    """A LoRA pattern matches nothing, or what must not get adapters."""


def check_lora_targets(model: nn.Module, lora: Mapping[str, Any]) -> list[str]:
    """Find the modules that a recipe's ``lora`` block would put adapters into.

    Args:
        model: a host, patched or not, before ``get_peft_model``. It is not changed.
        lora: arguments of ``peft.LoraConfig``.

    Returns:
        Their dotted paths, in the model's order. With ``target_modules: null`` or ``target_parameters`` the choice is
        PEFT's, by the model's type or by parameters; then the list may be empty.

    Raises:
        LoraTargetError: the pattern matches no module of the host, or one of the branch or of the prior.
    """
    model = base_model(model)
    targets = lora.get("target_modules")
    if targets is None:
        return []
    modules = dict(model.named_modules())
    frozen = _prior_modules(model)
    hit = _matched(modules, lora)
    inside = [name for name in hit if CHILD in name.split(".")]
    if inside:
        raise LoraTargetError(
            f"lora.target_modules {targets!r} matches {_few(inside)} of the branch, which trains in full. Anchor the "
            "pattern to the language model, or name the branch in exclude_modules."
        )
    foreign = [name for name in hit if id(modules[name]) in frozen]
    if foreign:
        raise LoraTargetError(
            f"lora.target_modules {targets!r} matches {_few(foreign)} of the prior, which is frozen and shared. Anchor "
            "the pattern to the language model, and keep the prior out of the model: `patch` does not register it."
        )
    if not hit and not lora.get("target_parameters"):
        raise LoraTargetError(_nothing(model, modules, frozen, lora))
    return hit


def _matched(modules: Mapping[str, nn.Module], lora: Mapping[str, Any]) -> list[str]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**lora)
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = _all_linear(modules)
    # PEFT's own rule, with layers_to_transform and exclude_modules.
    return [name for name in modules if name and _truly(check_target_module_exists(config, name))]


def _truly(found: Any) -> bool:
    """PEFT answers with a match, a bool, or for an excluded module with an object that is true but means no."""
    return bool(found) and type(found).__name__ != "_ExcludedModule"


def _all_linear(modules: Mapping[str, nn.Module]) -> set[str]:
    """Names of all linear layers but the output layer's, as PEFT takes them."""
    model: Any = modules.get("")
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not output}


def _prior_modules(model: nn.Module) -> dict[int, str]:
    """Modules of the prior, by identity, with their names in it."""
    if not is_patched(model):
        return {}
    found: dict[int, str] = {}
    for part in prior_parts(get_handle(model).prior):
        found |= {id(module): name for name, module in part.named_modules()}
    return found


def prior_parts(prior: Prior) -> Iterator[nn.Module]:
    """The modules that a prior holds: its encoder, its denoiser."""
    for value in vars(prior).values():
        # Built-in priors hold their parts in a dict.
        for part in value.values() if isinstance(value, Mapping) else (value,):
            if isinstance(part, nn.Module):
                yield part


def _nothing(
    model: nn.Module, modules: Mapping[str, nn.Module], frozen: Mapping[int, str], lora: Mapping[str, Any]
) -> str:
    targets = lora["target_modules"]
    ends = Counter(name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear))
    common = ", ".join(f"{name} ({count})" for name, count in ends.most_common(8))
    close = "".join(near_misses(target, ends) for target in ([] if isinstance(targets, str) else targets))
    example = next((name for name, m in modules.items() if isinstance(m, nn.Linear) and "layers." in name), "")
    of_prior = _matched(dict.fromkeys(frozen.values(), model), lora)
    return (
        f"lora.target_modules {targets!r} matches no module of {type(model).__name__}.{close}"
        + (f" It matches {_few(of_prior)} of the prior, which is frozen and no part of the model." if of_prior else "")
        + f" Its linear layers end in: {common or 'none'}."
        + (f" One is called {example!r}." if example else "")
        + " A list holds ends of names, a text is a regular expression for whole names."
    )


def _few(names: list[str]) -> str:
    return f"{len(names)} module{'s' if len(names) > 1 else ''} ({names[0]}{', ...' if len(names) > 1 else ''})"
