"""Checkpoint folders with something changed in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def copy_of(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where / "copy"))


def edit(path: Path, **values: Any) -> None:
    """Set values in a JSON file; None takes one away."""
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Another file of the same name: the old one may still be mapped into memory."""
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    path.unlink()
    save_file(change(tensors), path)


def cut(path: Path) -> None:
    """Half downloaded: the end is missing."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-100])
