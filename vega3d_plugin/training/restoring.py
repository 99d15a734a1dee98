"""The weights of a checkpoint back into the model that trains: all of them, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..host_loading import HostSource, load_host
from ..patching import is_patched
from ..saving import load_pretrained
from .errors import TrainError
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
            f"{lost[0]!r}. Go on from another checkpoint with --resume-from."
        )
    if is_patched(model):
        load_pretrained(model, checkpoint)
