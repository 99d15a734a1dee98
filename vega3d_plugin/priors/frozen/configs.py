"""What a checkpoint's configuration has to do with an error that diffusers or transformers raise from it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from ...contracts.errors import CheckpointError, Vega3dError
from ...contracts.printable import brief, first_line, one_line
from ...storage.reading import JsonObject, noting_reads

_SHOWN = 5


@contextmanager
def explained(what: str, source: str | None) -> Iterator[list[JsonObject]]:
    """Turn what others raise while they build a model of a checkpoint into an error that names files and settings.

    Args:
        what: is being built, such as ``Prior 'sd2.1'``.
        source: the checkpoint, as the user gave it.

    Yields:
        The configurations that are read meanwhile.

    Raises:
        CheckpointError: something else than an error of this library came through.
    """
    with noting_reads() as read:
        try:
            yield read
        except Vega3dError:
            raise
        except Exception as error:
            where = f" from {source}" if source else ""
            raise CheckpointError(
                f"{what} cannot be loaded{where}: {type(error).__name__}: {first_line(error)}. {_suspects(read)}"
            ) from error


def check_latents(vae: Any, read: Sequence[JsonObject]) -> None:
    """Refuse a VAE whose configuration scales latents by something else than numbers.

    diffusers takes any value there, and it is used with the first clip only.

    Args:
        vae: of diffusers; anything without such settings is left alone.
        read: configurations, of which the one that the VAE was built of is named.

    Raises:
        CheckpointError: names file and key.
    """
    config = getattr(vae, "config", None)
    sizes = [getattr(config, key, None) for key in ("z_dim", "latent_channels")]
    channels = next((size for size in sizes if isinstance(size, int) and size > 0), 1)
    for key in ("latents_mean", "latents_std", "scaling_factor", "shift_factor"):
        value = getattr(config, key, None)
        values = value if isinstance(value, list | tuple) else [value]
        scale = key in ("latents_std", "scaling_factor")
        right = all(_finite(each) and not (scale and each <= 0) for each in values)
        if key.startswith("latents"):
            right = right and isinstance(value, list | tuple) and len(values) > 0 and len(values) % channels == 0
        elif isinstance(value, list | tuple):
            right = False
        if value is not None and not right:
            file = next((each.file for each in read if key in each), "The configuration of the VAE")
            wanted = f"a list of numbers for {channels} channels" if key.startswith("latents") else "a number"
            raise CheckpointError(f"{file}: {key} is {brief(value)}, expected {wanted}. Download the file again.")


def _finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _suspects(read: list[JsonObject]) -> str:
    """Settings of another type than their classes have by default; else the files that were read."""
    found = [
        f"{config.file} gives {one_line(key)} as {brief(value, 60)}, where the default is {brief(default, 60)}"
        for config in read
        for key, default in _defaults(config).items()
        for value in (config.get(key),)
        if key in config and _differs(value, default)
    ]
    if found:
        return f"Most likely because {'; '.join(found[:_SHOWN])}. Download the file again."
    names = list(dict.fromkeys(str(config.file) for config in read))
    return f"Read before that: {', '.join(names[:_SHOWN])}. Download them again." if names else ""


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the class that a configuration is of; empty where it cannot be told."""
    name, kind = config.get("_class_name"), config.get("model_type")
    try:
        if isinstance(name, str):
            import diffusers

            parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
            return {p.name: p.default for p in parameters if p.default is not p.empty}
        if isinstance(kind, str):
            from transformers import CONFIG_MAPPING

            return dict(CONFIG_MAPPING[kind]().to_dict())
    except Exception:
        # Only an explanation is lost.
        pass
    return {}


def _differs(value: Any, default: Any) -> bool:
    """True where a value is of another kind than a default that tells its kind, or a size is not above zero."""
    if default is None or value is None:
        return default is not None
    if isinstance(default, bool | str):
        return type(value) is not type(default)
    if isinstance(default, int | float):
        # Many sizes may also be lists, one for each level.
        values = value if isinstance(value, list) else [value]
        plain = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
        return not plain or (default > 0 and any(each <= 0 for each in values))
    if isinstance(default, list | tuple):
        return not isinstance(value, list) or any(_differs(each, default[0]) for each in value if default)
    return isinstance(default, dict) and not isinstance(value, Mapping)
