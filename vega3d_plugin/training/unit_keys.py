"""What the clips of a row depend on, told without opening its pictures: how extraction and training name a unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..contracts.settings import PriorSettings
from ..features.extraction.shard import digest
from ..recipes.blocks import StoreSettings
from ..recipes.schema import RecipeSettings
from .rows.conversation import Medium


def common_key(settings: RecipeSettings, store: StoreSettings) -> str:
    """Of everything in a recipe, but the rows, that changes the names of entries."""
    return digest(json.dumps(_depends_on(settings, store), sort_keys=True))


def media_key(common: str, media: Sequence[Medium]) -> str:
    """Of the pictures of a row, with the sizes and times of their files."""
    return digest(common + "".join(map(_identity, media)))


def _depends_on(settings: RecipeSettings, store: StoreSettings) -> dict[str, Any]:
    """All but the pictures that the names of a unit's entries depend on; the prior is the store's."""
    data = settings.data.to_dict() if settings.data is not None else {}
    data = {key: value for key, value in data.items() if key not in ("files", "media_root", "workers", "skip_bad_rows")}
    prior = settings.prior.to_dict() if isinstance(settings.prior, PriorSettings) else {}
    train = settings.train
    return {
        "host": settings.host.to_dict(),
        "data": data,
        "branch": {"images": settings.images, "space": settings.space, "projector": settings.projector.name},
        "dtype": [prior.get("dtype"), prior.get("device"), torch.cuda.is_available()],
        "form": store.form,
        "train": None if train is None else [train.max_length, train.deepspeed is not None, train.bf16],
    }


def _identity(medium: Medium) -> str:
    """A medium by what its pixels depend on, without opening it."""
    source = medium.source
    parts = [_file_identity(part) for part in (source if isinstance(source, list) else [source])]
    whole = (medium.kind, medium.fps, medium.marks, parts)
    # What has no part keeps the name that it had before there were parts.
    return repr(whole if medium.part is None else (*whole, medium.part))


def _file_identity(source: Any) -> Any:
    if isinstance(source, Path):
        try:
            about = source.stat()
            return str(source.resolve()), about.st_size, about.st_mtime_ns
        except OSError:
            return str(source)
    if isinstance(source, Image.Image):
        # Of rendered scenes, and of rows that do not come from files.
        return source.size, source.mode, hashlib.sha256(source.tobytes()).hexdigest()
    return repr(source)
