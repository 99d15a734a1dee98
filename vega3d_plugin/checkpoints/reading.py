"""Finding a branch in what a trainer wrote: our own files, a PEFT adapter, or a full model's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contracts.errors import SavedBranchError
from ..storage.folders import fetch, local_folder
from ..storage.record import CONFIG_FILE, MARK, OTHER_FILES, WEIGHTS_FILE, check_record, decode_record


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


#: Files of a whole model, not of an adapter.
FULL_MODEL = tuple(pattern for pattern in OTHER_FILES if not pattern.startswith("adapter"))


def folder_with_branch(source: Any, options: Mapping[str, Any]) -> Path | None:
    """The folder of a checkpoint, when it holds a branch; None when it does not.

    Args:
        source: what ``from_pretrained`` was given: a folder or a hub id.
        options: what else it was given.

    Raises:
        SavedBranchError: it is on the hub, and cannot be looked into.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _snapshot(str(source), options)
    folder = folder / (options.get("subfolder") or "")
    return folder if holds_branch(folder) else None


def holds_branch(folder: Path) -> bool:
    """True when :func:`read_saved` would find a branch; names are read, no weights."""
    if (folder / CONFIG_FILE).is_file():
        return True
    return any(MARK in name for pattern in OTHER_FILES for file in folder.glob(pattern) for name in _names(file))


def _snapshot(repo_id: str, options: Mapping[str, Any]) -> Path:
    """The folder of a hub id in the cache, where ``from_pretrained`` has just put it, with the branch's own files."""

    from huggingface_hub import snapshot_download

    places = {key: options[key] for key in ("revision", "cache_dir", "token") if options.get(key) is not None}
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE], **places))
    except Exception as error:
        # Going on would train or evaluate a new branch in place of a trained one.
        raise SavedBranchError(
            f"Whether {repo_id!r} holds a branch cannot be told: {type(error).__name__}: {error}. Download it "
            f"(hf download {repo_id}), and give the script the folder."
        ) from error


def _names(file: Path) -> list[str]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                return list(handle.keys())
        # On the meta device nothing but names and shapes is made; weights_only keeps pickles from running code.
        return list(torch.load(file, map_location="meta", weights_only=True))
    except (SafetensorError, OSError) as error:
        raise SavedBranchError(f"{file} is damaged or no file of weights ({type(error).__name__}: {error}).") from error
    except Exception as error:
        raise SavedBranchError(f"{file} cannot be read as plain weights: {error}") from error
