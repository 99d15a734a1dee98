"""Settings of a branch that change nothing beside its other settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from ..contracts.settings import BranchSettings, FusionSettings
from ..contracts.tables import FUSERS

_OF_ATTENTION = ("num_heads", "num_layers", "dropout")


def idle_settings(settings: BranchSettings) -> Iterator[str]:
    """A sentence for each setting that was changed from its default and has no effect."""
    context = settings.prior.context
    if settings.history > 1 and context == "frame":
        yield (
            f"history={settings.history} has no effect with context='frame', in which the prior sees each picture "
            "alone. Pass context='views'."
        )
    if settings.images == "scene" and context == "frame":
        yield (
            "images='scene' has no effect on features with context='frame', in which the prior sees each picture "
            "alone. Pass context='views', or images='separate'."
        )
    fusion = settings.fusion
    if _changed(fusion, "residual_scale"):
        if fusion.name != "token_gated_residual":
            yield f"fusion.residual_scale has no effect with {fusion.name!r}. It is of 'token_gated_residual'."
        elif fusion.init == "identity":
            yield (
                "fusion.residual_scale has no effect with init='identity', which starts at 0. Pass init='released', or "
                "leave residual_scale out."
            )
    takes = inspect.signature(FUSERS.get(fusion.name)).parameters
    for name in _OF_ATTENTION:
        if _changed(fusion, name) and name not in takes:
            yield f"fusion.{name} has no effect with {fusion.name!r}. It is of 'cross_attention'."


def _changed(fusion: FusionSettings, name: str) -> bool:
    return bool(getattr(fusion, name) != FusionSettings.model_fields[name].default)
