"""The files that a verb writes: refused before the work where they cannot be written, and never incomplete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..contracts.errors import Vega3dError
from ..storage.writing import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


class OutputError(Vega3dError):
    """A file cannot be written."""


def check_target(path: Path, *suffixes: str, force: bool = True) -> None:
    """Find out whether a file could be written, and make its folder.

    Raises:
        BadParameter: another suffix than ``suffixes``.
        OutputError: a folder of that name, a folder that cannot be written to, or an existing file without ``force``.
    """
    if path.suffix not in suffixes:
        raise typer.BadParameter(f"{path}: the name of the file must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; the path of a file is expected.")
    if path.exists() and not force:
        raise OutputError(f"{path} exists. Pass --force to replace it, or another --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another place.") from error
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"{path} cannot be written: no permission for the folder {path.parent}. Choose another place."
        )


def write(path: Path, how: Callable[[Path], object]) -> None:
    """Let ``how`` write a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    # Here, since verbs that write text need no torch.
    from safetensors import SafetensorError

    try:
        write_atomically(path, how)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another place.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file."""
    # Here, since verbs that write text need no torch.
    from safetensors.torch import save_file

    # Copies, since safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write(path, lambda temporary: save_file(copies, temporary, metadata))
