"""What weights a folder or a file of a trainer holds, by name and shape, read tensor by tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contracts.errors import CheckpointError, SavedBranchError

Tensors = dict[str, Tensor]
# What follows a variant's name in the name of a weight file.
_SHARD = re.compile(r"(-\d+-of-\d+)?\.safetensors$")
#: File names of weights: of diffusers' models, and of transformers'.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


#: Pickled weights by the name of their files, in the order in which they are looked for. LLaVA's trainers write the
#: last two: the projectors alone, and what LoRA leaves out.
PICKLES = ("pytorch_model", "mm_projector", "non_lora_trainables")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        key: its name there.
        file: where it is.
        shape: of the tensor.
    """

    key: str
    file: Path
    shape: tuple[int, ...]


def stored_tensors(source: Path) -> Iterator[dict[str, Stored]]:
    """The weights of a folder or of one file, one mapping by name for each set of files.

    A folder may hold several sets: ``model*.safetensors``, ``pytorch_model*.bin``, ``mm_projector.bin``,
    ``non_lora_trainables.bin``. Shards that an index names must all be there.

    Raises:
        SavedBranchError: files that are missing, damaged, or hold something else than tensors.
    """
    sets: Iterable[Callable[[], list[Path]]] = [lambda: [source]] if source.is_file() else _sets(source)
    try:
        for files in sets:
            yield {entry.key: entry for file in files() for entry in _entries(file)}
    except CheckpointError as error:
        raise SavedBranchError(str(error)) from error


def read_stored(entries: Iterable[Stored]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, file by file.

    Raises:
        SavedBranchError: a file is damaged.
    """
    by_file: dict[Path, list[Stored]] = {}
    for entry in entries:
        by_file.setdefault(entry.file, []).append(entry)
    for file, wanted in by_file.items():
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as handle:
                    for entry in wanted:
                        yield entry.key, handle.get_tensor(entry.key)
            except (SafetensorError, OSError) as error:
                raise SavedBranchError(_damaged(file, error)) from error
        else:
            tensors = _pickled(file)
            for entry in wanted:
                yield entry.key, tensors[entry.key]


def _sets(folder: Path) -> Iterator[Callable[[], list[Path]]]:
    if any(folder.glob(f"{TRANSFORMERS}*.safetensors")) or any(folder.glob(f"{TRANSFORMERS}.safetensors.index.json")):
        yield partial(weight_files, folder, TRANSFORMERS)
    for stem in PICKLES:
        if any(folder.glob(f"{stem}*.bin")) or (folder / f"{stem}.bin.index.json").is_file():
            yield partial(_pickle_files, folder, stem)


def _pickle_files(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.bin.index.json"
    if not index.is_file():
        whole = folder / f"{stem}.bin"
        return [whole] if whole.is_file() else sorted(folder.glob(f"{stem}*.bin"))
    files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise SavedBranchError(
            f"{folder} is half there: {index.name} names {', '.join(missing) or 'no files'}, missing. Fetch again. "
            f"{listing(folder)}"
        )
    return files


def _entries(file: Path) -> list[Stored]:
    if file.suffix != ".safetensors":
        return [Stored(key, file, tuple(tensor.shape)) for key, tensor in _pickled(file).items()]
    try:
        with safe_open(file, framework="pt") as handle:
            keys = list(handle.keys())
            return [Stored(key, file, tuple(handle.get_slice(key).get_shape())) for key in keys]
    except (SafetensorError, OSError) as error:
        raise SavedBranchError(_damaged(file, error)) from error


def _pickled(file: Path) -> Mapping[str, Tensor]:
    """Tensors of a ``.bin`` file; mapped into memory where its format allows."""
    try:
        # Pickles can run code; weights_only refuses anything but tensors.
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # The format before torch 1.6 cannot be mapped.
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SavedBranchError(
            f"{file} cannot be read as plain weights ({type(error).__name__}: {error}). Pickles that hold more than "
            "tensors are refused, because reading them could run code."
        ) from error
    if not isinstance(loaded, Mapping):
        raise SavedBranchError(f"{file} holds a {type(loaded).__name__}, expected a mapping of tensors.")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def _damaged(file: Path, error: Exception) -> str:
    return f"{file} is damaged or no file of weights ({type(error).__name__}: {error})."


def read_tensors(files: Iterable[Path], wanted: Callable[[str], bool]) -> Tensors:
    """Tensors of safetensors files, by name, only those that are wanted."""
    tensors: Tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                tensors.update({key: handle.get_tensor(key) for key in handle.keys() if wanted(key)})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or incomplete ({error}). Fetch it again.") from error
    return tensors


def weight_files(folder: Path, stem: str = DIFFUSERS) -> list[Path]:
    """The safetensors files of a folder, whole or in shards; every shard that its index names must be there."""
    # Beside the weights there may be variants of lower precision, which have one more part in their name.
    indices = sorted(folder.glob(f"{stem}*.safetensors.index*.json"), key=lambda path: path.name.count("."))
    whole = folder / f"{stem}.safetensors"
    if whole.is_file() and not (folder / f"{stem}.safetensors.index.json").is_file():
        return [whole]
    if indices:
        index = indices[0]
        files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise CheckpointError(
                f"{folder} is half there: {index.name} names {', '.join(missing)}, missing. Fetch again."
            )
        return files
    files = sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} is half there: it has no {stem}*.safetensors. {listing(folder)}")
    variants = [_SHARD.sub("", file.name) for file in files]
    best = min(variants, key=lambda name: (name != stem, name != f"{stem}.fp16", name))
    return [file for file, variant in zip(files, variants, strict=True) if variant == best]


def read_pickle(file: Path) -> Tensors:
    """Tensors of a ``.pth`` file by name; nothing but tensors is ever unpickled."""
    try:
        # Pickles can run code; weights_only refuses anything but tensors.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read as plain weights: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, expected a dict of tensors.")
    return loaded


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} is half there: {file.name} is missing. {listing(file.parent)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, expected an object.")
    return values


def listing(folder: Path) -> str:
    """What is in a folder, for messages."""
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()) if folder.is_dir() else []
    return f"Found: {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}."
