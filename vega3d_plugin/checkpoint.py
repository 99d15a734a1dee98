"""Finding a branch in what a trainer wrote: our own files, a PEFT adapter, or a full model's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import SavedBranchError
from .record import check_record, decode_record
from .sources import fetch, local_folder

CONFIG_FILE = "vega3d_config.json"
WEIGHTS_FILE = "vega3d.safetensors"
# Trainers' files, in the order in which they are searched for a branch.
OTHER_FILES = ("adapter_model*.safetensors", "model*.safetensors", "adapter_model*.bin", "pytorch_model*.bin")
MARK = ".vega3d."


@dataclass(frozen=True)
class Saved:
    """A branch as it was saved.

    Attributes:
        where: the file or folder, for messages.
        record: host, prior and settings.
        tensors: the branch's tensors by their own names.
    """

    where: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]


def saved_folder(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a saved branch or of an adapter with one; of a hub id, its files are fetched.

    Raises:
        SavedBranchError: no such folder or hub id.
    """
    patterns = [CONFIG_FILE, WEIGHTS_FILE, "adapter_model*", "adapter_config.json"]
    folder = local_folder(source, SavedBranchError)
    return folder or fetch(str(source), patterns, SavedBranchError, revision=revision, token=token)


def read_saved(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Saved:
    """Read a branch from a folder or a hub id.

    Raises:
        SavedBranchError: no such folder, nothing of a branch in it, or files that are damaged.
    """
    folder = saved_folder(source, revision=revision, token=token)
    if (folder / CONFIG_FILE).is_file():
        if not (folder / WEIGHTS_FILE).is_file():
            raise SavedBranchError(f"{folder} is half there: {CONFIG_FILE} without {WEIGHTS_FILE}.")
        record = check_record((folder / CONFIG_FILE).read_bytes(), str(folder / CONFIG_FILE))
        return Saved(str(folder), record, _read(folder / WEIGHTS_FILE))
    searched = []
    for pattern in OTHER_FILES:
        found: dict[str, Tensor] = {}
        for file in sorted(folder.glob(pattern)):
            searched.append(file.name)
            found |= _read(file, MARK)
        if found:
            data = found.pop("record", None)
            if data is None:
                raise SavedBranchError(f"{folder} holds a branch without its record; it was saved by something else.")
            return Saved(str(folder), decode_record(data, str(folder)), found)
    raise SavedBranchError(
        f"{folder} holds no branch: no {CONFIG_FILE}, and no tensors named '*{MARK}*' in "
        f"{', '.join(searched) or 'any checkpoint file'}. " + _advice(folder)
    )


def _advice(folder: Path) -> str:
    steps = {path.name.rpartition("-")[2]: path for path in folder.glob("checkpoint-*") if path.is_dir()}
    numbers = [step for step in steps if step.isdecimal()]
    if numbers:
        return f"It is a run's output folder: name a checkpoint in it, such as {steps[max(numbers, key=int)]}."
    return "With PEFT, train with modules_to_save=['vega3d']."


def _read(file: Path, mark: str = "") -> dict[str, Tensor]:
    """Tensors of a file; with a mark, those behind it, by the rest of their names."""

    def short(key: str) -> str | None:
        return key if not mark else key.rpartition(mark)[2] if mark in key else None

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                keys = [key for key in handle.keys() if short(key) is not None]  # noqa: SIM118 - no iterator there
                return {str(short(key)): handle.get_tensor(key) for key in keys}
        # Pickles can run code; weights_only refuses anything but tensors.
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        return {str(short(key)): value for key, value in loaded.items() if short(key) is not None}
    except (SafetensorError, OSError) as error:
        raise SavedBranchError(f"{file} is damaged or no file of weights ({type(error).__name__}: {error}).") from error
    except Exception as error:
        raise SavedBranchError(f"{file} cannot be read as plain weights: {error}") from error
