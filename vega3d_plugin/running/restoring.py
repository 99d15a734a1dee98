"""Does a checkpoint hold a branch? And which processor goes with it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoint import CONFIG_FILE, MARK, OTHER_FILES, WEIGHTS_FILE
from ..errors import SavedBranchError

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
    """True when :func:`~vega3d_plugin.checkpoint.read_saved` would find a branch; names are read, no weights."""
    if (folder / CONFIG_FILE).is_file():
        return True
    return any(MARK in name for pattern in OTHER_FILES for file in folder.glob(pattern) for name in _names(file))


def host_processor(model: nn.Module, source: Any) -> Any:
    """The processor that lies beside a host's weights, or None when there is none that takes images."""
    from transformers import AutoProcessor

    # A model whose code came with its checkpoint was loaded with the user's word for that code.
    trusted = type(model).__module__.startswith("transformers_modules.")
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trusted)
    except Exception:
        return None
    # Where there is only a tokenizer, AutoProcessor gives that.
    return processor if getattr(processor, "image_processor", None) is not None else None


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
