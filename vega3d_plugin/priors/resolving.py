"""What a prior's settings come to, before it is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..contracts.errors import PriorError, SettingsError, near_misses
from ..contracts.settings import PriorSettings
from ..contracts.tables import PRIORS
from .frozen.windows import windows


def resolve(settings: PriorSettings) -> PriorSettings:
    """Fill what the user left open with the preset and the prior's own defaults, and check what only it can judge.

    Raises:
        SettingsError: options that the prior has not, or a preset that it has not.
        PriorError: a context that it has not.
    """
    spec = PRIORS.get(settings.name)
    given = {key: getattr(settings, key) for key in settings.model_fields_set if getattr(settings, key) is not None}
    preset: Mapping[str, Any] = {}
    if settings.preset is not None:
        if settings.preset not in spec.presets:
            raise SettingsError(
                f"Prior {spec.name!r} has no preset {settings.preset!r}."
                f"{near_misses(settings.preset, spec.presets)} It has: {', '.join(spec.presets) or 'none'}."
            )
        preset = spec.presets[settings.preset]
    layers: tuple[Mapping[str, Any], ...] = ({"pretrained": spec.source or None}, spec.defaults, preset, given)
    merged = {key: value for layer in layers for key, value in layer.items()}
    options = {key: value for layer in layers for key, value in layer.get("options", {}).items()}
    if spec.options is not None:
        options = spec.options.parse(
            options, where=f"the options of prior {spec.name!r}", inside=("options",)
        ).to_dict()
    resolved = PriorSettings.parse({**merged, "options": options})
    if resolved.context not in spec.contexts:
        raise PriorError(
            f"Prior {spec.name!r} has no context {resolved.context!r}. It has: {', '.join(spec.contexts)}."
        )
    if resolved.every > 1 and resolved.context != "frame":
        raise PriorError(
            f"Prior {spec.name!r}: every={resolved.every} leaves frames out where each is seen alone, and in context "
            f"{resolved.context!r} frames see each other. Use context='frame', or give it fewer frames."
        )
    if resolved.window is not None and resolved.context != "frame":
        windows(1, resolved.window, resolved.overlap)
    return resolved
