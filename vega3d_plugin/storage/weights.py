"""What weights a folder or a file of a trainer holds, by name and shape, read tensor by tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..contracts.errors import CheckpointError, SavedBranchError, Vega3dError
from . import reading
from .pickles import load_pickle
from .reading import JsonObject, named_files, open_safetensors

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
            yield {entry.key: entry for file in files() for entry in stored_entries(file)}
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
            with open_safetensors(file, SavedBranchError) as opened:
                for entry in wanted:
                    yield entry.key, opened.get_tensor(entry.key)
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
    files = named_files(index, SavedBranchError)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise SavedBranchError(
            f"{folder} is incomplete: {index.name} names {_some(missing)}, which is missing. "
            f"Download it again. {listing(folder)}"
        )
    return files


def stored_entries(file: Path) -> list[Stored]:
    """The tensors of one file, safetensors or pickled. Raises :class:`SavedBranchError` as :func:`stored_tensors`."""
    if file.suffix != ".safetensors":
        return [Stored(key, file, tuple(tensor.shape)) for key, tensor in _pickled(file).items()]
    with open_safetensors(file, SavedBranchError) as opened:
        return [Stored(key, file, tuple(opened.get_slice(key).get_shape())) for key in list(opened.keys())]


def _pickled(file: Path) -> Mapping[str, Tensor]:
    """Tensors of a ``.bin`` file; mapped into memory where its format allows."""
    return {key: value for key, value in read_pickle(file, SavedBranchError).items() if isinstance(value, Tensor)}


def read_tensors(files: Iterable[Path], wanted: Callable[[str], bool]) -> Tensors:
    """Tensors of safetensors files, by name, only those that are wanted."""
    tensors: Tensors = {}
    for file in files:
        with open_safetensors(file, CheckpointError) as opened:
            tensors.update({key: opened.get_tensor(key) for key in list(opened.keys()) if wanted(key)})
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
        files = named_files(index, CheckpointError)
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise CheckpointError(
                f"{folder} is incomplete: {index.name} names {_some(missing)}, which is missing. Download it again."
            )
        return files
    files = sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} is incomplete: it has no {stem}*.safetensors. {listing(folder)}")
    variants = [_SHARD.sub("", file.name) for file in files]
    best = min(variants, key=lambda name: (name != stem, name != f"{stem}.fp16", name))
    return [file for file, variant in zip(files, variants, strict=True) if variant == best]


def read_pickle(file: Path, error: type[Vega3dError] = CheckpointError) -> dict[str, Any]:
    """What a ``.pth`` or ``.bin`` file holds by name; nothing but tensors and plain values is ever unpickled.

    Raises:
        Vega3dError: of the given type, see :func:`~vega3d_plugin.storage.pickles.load_pickle`; or no mapping.
    """
    loaded = load_pickle(file, error)
    if not isinstance(loaded, Mapping):
        raise error(f"{file} holds a {type(loaded).__name__}, expected a dict of tensors.")
    return {str(key): value for key, value in loaded.items()}


def read_json(file: Path) -> JsonObject:
    """An object from a JSON file of a checkpoint. Raises :class:`CheckpointError`."""
    missing = f"{file.parent} is incomplete: {file.name} is missing. {listing(file.parent)}"
    found = reading.read_json(file, CheckpointError, missing=missing)
    # An index has numbers of bytes, all other files of a checkpoint such as models are built of.
    return found if file.name.endswith(".index.json") else found.check_sizes()


def listing(folder: Path) -> str:
    """What is in a folder, for messages."""
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    except OSError:
        names = []
    return f"Found: {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5]) or 'no files'}{more}"
