"""What there is in a trainer's checkpoint: the branch, an adapter, a whole host, its processor, how data was shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..contracts.errors import SavedBranchError
from ..hosts.loading import PROCESSOR_FILES
from ..storage.record import RUN_FILE
from .reading import FULL_MODEL, holds_branch, saved_folder

#: Stands for "leave it out", where harnesses can only pass text.
NONE = "none"


@dataclass(frozen=True)
class Trained:
    """Where the parts of a trained model are.

    Attributes:
        host: folder or hub id of the host's weights.
        branch: folder of the branch; None without one.
        adapter: folder or hub id of the PEFT adapter; None without one.
        processor: folder or hub id of the host's processor.
        data: the settings of its data, where the run wrote them; else empty.
    """

    host: str
    branch: str | None
    adapter: str | None
    processor: str
    data: dict[str, Any] = field(default_factory=dict)


def find_trained(
    host: str | Path,
    branch: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    processor: str | Path | None = None,
) -> Trained:
    """Look into a checkpoint.

    Args:
        host: what the branch was trained on, or a checkpoint of a whole trained host.
        branch: a saved branch or a trainer's checkpoint, whose host is taken where it holds one; default: ``host``;
            ``none``: no branch.
        adapter: a PEFT adapter; default: ``branch``, when it holds one; ``none``: without it.
        processor: default: that of the checkpoint, which has the limits of training, else the host's.

    Raises:
        SavedBranchError: no such folder or hub id; or no branch is given, and ``host`` holds none.
    """
    if branch is None:
        if not Path(host).is_dir() or not holds_branch(Path(host)):
            raise SavedBranchError(
                f"{host} holds no branch: give branch=DIR (as an option: --branch DIR), a saved branch or a checkpoint "
                "(branch=none for the host alone), so that a forgotten branch is not evaluated as one."
            )
        branch = host
    folder = None if str(branch) == NONE else saved_folder(branch)
    if adapter is None and folder is not None and (folder / "adapter_config.json").is_file():
        adapter = folder
    wanted = None if adapter is None or str(adapter) == NONE else str(adapter)
    whole = folder is not None and holds_host(folder) and folder.resolve() != Path(host).resolve()
    checkpoints = [Path(place) for place in (folder, wanted) if place is not None]
    if processor is None:
        beside = (place for place in checkpoints if any((place / name).is_file() for name in PROCESSOR_FILES))
        processor = next(beside, host)
    runs = (place / RUN_FILE for place in (*checkpoints, Path(host)))
    run = next((file for file in runs if file.is_file()), None)
    data = {} if run is None else json.loads(run.read_text(encoding="utf-8"))["settings"].get("data") or {}
    return Trained(
        host=str(folder if whole else host),
        branch=None if folder is None else str(folder),
        adapter=wanted,
        processor=str(processor),
        data=data,
    )


def holds_host(folder: Path) -> bool:
    """True for the checkpoint of a whole host; an adapter or a branch alone is none."""
    return (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in FULL_MODEL)


def with_adapter(model: nn.Module, adapter: str | None) -> nn.Module:
    """The model inside its PEFT adapter, in eval mode; itself without one.

    Raises:
        SavedBranchError: the adapter cannot be loaded.
    """
    if adapter is None:
        return model
    from peft import PeftModel

    try:
        loaded: nn.Module = PeftModel.from_pretrained(model, adapter).eval()
    except ValueError as error:
        raise SavedBranchError(f"The adapter {adapter} cannot be loaded: {error}") from error
    return loaded
