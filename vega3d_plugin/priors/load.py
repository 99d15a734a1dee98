"""Load a prior by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contracts.errors import PriorError
from ..contracts.priors import Prior
from ..contracts.settings import PriorSettings
from ..contracts.tables import PRIORS
from .frozen.configs import check_latents, explained
from .frozen.towers import apply_tower
from .resolving import resolve


def load_prior(
    name: str | PriorSettings = "wan2.1-t2v-1.3b",
    *,
    pretrained: str | Path | None = None,
    revision: str | None = None,
    tower: str | Path | None = None,
    preset: str | None = None,
    timestep: int | None = None,
    shift: float | None = None,
    tap: int | None = None,
    size: tuple[int, int] | None = None,
    resize: str | None = None,
    context: str | None = None,
    seed: int | None = None,
    window: int | None = None,
    overlap: int | None = None,
    every: int | None = None,
    int8: bool | None = None,
    chunk_frames: int | None = None,
    max_tokens: int | None = None,
    fast: bool | Sequence[str] | None = None,
    compile: bool | None = None,
    offload: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
    **own: Any,
) -> Prior:
    """Load a frozen prior.

    Args:
        name: a registered prior (:func:`list_priors`), or complete settings.
        pretrained: hub id or folder; default: the prior's own source.
        revision: of the hub repository.
        tower: whose tower replaces these weights: a released checkpoint, or ``vega3d_tower.safetensors``.
        preset: ``released`` for the oddities of the released code.
        timestep: noise level, 0 to 1000; default 300.
        shift: of the schedule; default 5.0.
        tap: block whose output is the feature, negative from the end; default: the prior's own (20 for Wan 1.3B).
        size: height and width in pixels; default: the prior's own (480, 832).
        resize: ``crop`` (default, as released) or ``stretch``.
        context: ``frame`` (default, as released), ``views`` or ``video``.
        seed: of the noise; default 0.
        window, overlap: latent steps attended jointly in ``views`` and ``video``, and how many neighbours share.
        every: approximate: see every n-th frame alone and interpolate between; context ``frame``; default 1.
        int8: approximate: linear layers in 8-bit integers, Wan on a CPU; default False.
        chunk_frames, max_tokens: frames or tokens per forward; change memory, not features.
        fast: exact reductions of the work: True (default), False, or a list of names.
        compile: ``torch.compile`` the blocks; default False.
        offload: wait in the CPU's memory between calls; default False.
        dtype: compute dtype; default bfloat16 on CUDA, else float32.
        device: default: wherever the frames are.
        options: settings of this family of priors alone; each may also be given by its name, as in
            ``load_prior("wan2.1-vace-1.3b", reference="none")``.

    Raises:
        UnknownNameError, SettingsError: unknown name or wrong settings.
        PriorError, CheckpointError, PromptError: weights that cannot be used; the message says what was found.
    """
    if isinstance(name, PriorSettings):
        settings = name
    else:
        PRIORS.get(name)
        given = {
            "name": name, "pretrained": pretrained, "revision": revision, "tower": tower, "preset": preset,
            "timestep": timestep, "shift": shift, "tap": tap, "size": size, "resize": resize, "context": context,
            "seed": seed, "window": window, "overlap": overlap, "every": every, "int8": int8,
            "chunk_frames": chunk_frames, "max_tokens": max_tokens, "fast": fast, "compile": compile,
            "offload": offload, "dtype": dtype, "device": device, "options": options, **own,
        }  # fmt: skip
        settings = PriorSettings.parse({k: v for k, v in given.items() if v is not None})
    settings = resolve(settings)
    # Under a caller's inference mode the weights would be inference tensors, which no other mode can use.
    with torch.inference_mode(False), explained(f"Prior {settings.name!r}", settings.pretrained) as read:
        prior = PRIORS.get(settings.name).load(settings)
        _check_approximations(prior, settings)
        apply_tower(prior, settings.tower)
        check_latents(getattr(prior, "vae", None), read)
    if prior.settings is None:
        prior.settings = settings
    return prior


def _check_approximations(prior: Prior, settings: PriorSettings) -> None:
    """Refuse approximations that a prior would pass over without a word."""
    for setting, is_asked, able in (
        ("every", settings.every > 1, "interpolates"),
        ("int8", settings.int8, "multiplies_in_int8"),
    ):
        if is_asked and not getattr(prior, able, False):
            raise PriorError(f"Prior {settings.name!r} has no approximation {setting!r}: leave it at its default.")


def list_priors(pattern: str = "*") -> list[str]:
    """Names of the registered priors that match a wildcard pattern such as ``wan*``."""
    return fnmatch.filter(PRIORS.names(), pattern)
