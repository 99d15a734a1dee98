"""The weights of a checkpoint back into the model that trains: all of them, or an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from ...branch.handle import is_patched
from ...checkpoints.reading import FULL_MODEL, _names
from ...checkpoints.saving import load_pretrained
from ...contracts.errors import TrainError
from ...hosts.loading import HostSource, load_host
from ...storage.record import MARK
from .parts import part_of


def restore_weights(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint of the whole model, as ``from_pretrained`` reads it.

    Trainer gives the file's names to ``load_state_dict`` and goes on, with a warning, where they do not fit. But
    transformers 5 writes some hosts (Qwen2.5-VL is one) under the names of their released checkpoints, none of which
    fits: such a run would begin again with the base model's weights.

    Args:
        model: a model of transformers, patched or not.
        checkpoint: folder that Trainer has written.

    Raises:
        TrainError: the checkpoint lacks weights, or has others.
        HostError, SavedBranchError: it cannot be read.
    """
    # Exact for every part: what is kept in half precision comes back by being rounded to itself.
    saved = load_host(HostSource(str(checkpoint), type(model), model.config), device="cpu", dtype="float32")
    found = model.load_state_dict(saved.model.state_dict(), strict=False)
    lost = [*saved.missing, *(name for name in found.missing_keys if part_of(name) != "branch"), *found.unexpected_keys]
    if lost:
        raise TrainError(
            f"{checkpoint} does not hold the weights of this model: {len(lost)} have no counterpart, the first is "
            f"{lost[0]!r}. Resume from another checkpoint with --resume-from."
        )
    if is_patched(model):
        load_pretrained(model, checkpoint)


def reload_renamed(model: nn.Module, folder: Path, quietly: Callable[[], AbstractContextManager[object]]) -> bool:
    """Load a host's own weights where a trainer could not: saved under other names than the model has.

    transformers 5 writes Qwen-VL under its older names, and its Trainer reads checkpoints by the model's names, so
    it resumes from the base model with nothing but a warning.

    Args:
        model: the host.
        folder: of a full checkpoint.
        quietly: a context in which ``from_pretrained`` adds no branch.

    Returns:
        Whether there was anything to do.
    """
    known = set(model.state_dict())
    saved = [name for pattern in FULL_MODEL for file in folder.glob(pattern) for name in _names(file)]
    if not saved or all(name in known for name in saved if MARK not in name):
        return False
    cls: Any = type(model)
    with quietly():
        read = cls.from_pretrained(folder)
    model.load_state_dict(read.state_dict(), strict=False)
    return True
