"""An experiment as YAML: layers, schema, blocks, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .library import (
    TINY,
    DataSettings,
    Examined,
    HostSettings,
    Place,
    Problem,
    Recipe,
    RecipeError,
    RecipeSettings,
    TrainSettings,
    TuneSettings,
    branch_settings,
    examine_recipe,
    find_recipe,
    list_recipes,
    read_recipe,
    recipe_path,
)

if TYPE_CHECKING:
    from ..hosts.lora_targets import LoraTargetError, check_lora_targets


def __getattr__(name: str) -> Any:
    """What looks at a model is imported when it is first used, since it needs torch."""
    if name not in ("LoraTargetError", "check_lora_targets"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..hosts import lora_targets

    return getattr(lora_targets, name)


__all__ = [
    "TINY",
    "DataSettings",
    "Examined",
    "HostSettings",
    "LoraTargetError",
    "Place",
    "Problem",
    "Recipe",
    "RecipeError",
    "RecipeSettings",
    "TrainSettings",
    "TuneSettings",
    "branch_settings",
    "check_lora_targets",
    "examine_recipe",
    "find_recipe",
    "list_recipes",
    "read_recipe",
    "recipe_path",
]
