"""Load a prior by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import PriorSettings
from ..errors import PriorError
from ..plugins import plugin_manager
from .base import Prior


def load_prior(
    name: str | PriorSettings = "wan2.1-t2v-1.3b",
    *,
    pretrained: str | Path | None = None,
    revision: str | None = None,
    timestep: int | None = None,
    shift: float | None = None,
    tap: int | None = None,
    size: tuple[int, int] | None = None,
    resize: str | None = None,
    context: str | None = None,
    seed: int | None = None,
    chunk_frames: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
) -> Prior:
    """Load a frozen prior.

    Args:
        name: a registered prior (:func:`list_priors`), or complete settings.
        pretrained: hub id or folder; default: the prior's own source.
        revision: of the hub repository.
        timestep: noise level, 0 to 1000; default 300.
        shift: of the schedule; default 5.0.
        tap: block whose output is the feature, negative from the end; default: the prior's own (20 for Wan 1.3B).
        size: height and width in pixels; default: the prior's own (480, 832).
        resize: ``crop`` (default, as released) or ``stretch``.
        context: ``frame`` (default, as released), ``views`` or ``video``.
        seed: of the noise; default 0.
        chunk_frames: frames per forward; changes memory, not features.
        dtype: compute dtype; default bfloat16 on CUDA, else float32.
        device: default: wherever the frames are.
        options: of a third party's prior.

    Raises:
        UnknownNameError, SettingsError: unknown name or wrong settings.
        PriorError, CheckpointError, PromptError: weights that cannot be used; the message says what was found.
    """
    if isinstance(name, PriorSettings):
        settings = name
    else:
        plugin_manager().priors.get(name)
        given = {
            "name": name, "pretrained": pretrained, "revision": revision, "timestep": timestep, "shift": shift,
            "tap": tap, "size": size, "resize": resize, "context": context, "seed": seed,
            "chunk_frames": chunk_frames, "dtype": dtype, "device": device, "options": options,
        }  # fmt: skip
        settings = PriorSettings.parse({k: v for k, v in given.items() if v is not None})
    settings = resolve(settings)
    # Under a caller's inference mode the weights would be inference tensors, which no other mode can use.
    with torch.inference_mode(False):
        prior = plugin_manager().priors.get(settings.name).load(settings)
    if prior.settings is None:
        prior.settings = settings
    return prior


def resolve(settings: PriorSettings) -> PriorSettings:
    """Fill what the user left open with the prior's own defaults, and check the context."""
    spec = plugin_manager().priors.get(settings.name)
    given = {key: getattr(settings, key) for key in settings.model_fields_set if getattr(settings, key) is not None}
    resolved = PriorSettings.parse({"pretrained": spec.source or None, **spec.defaults, **given})
    if resolved.context not in spec.contexts:
        raise PriorError(
            f"Prior {spec.name!r} has no context {resolved.context!r}. It has: {', '.join(spec.contexts)}."
        )
    return resolved


def list_priors(pattern: str = "*") -> list[str]:
    """Names of the registered priors that match a wildcard pattern such as ``wan*``."""
    return fnmatch.filter(plugin_manager().priors.names(), pattern)
