"""Reading a checkpoint folder: what of it is needed, tensor by tensor, with errors that name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import PriorSettings
from ..errors import CheckpointError
from ..sources import fetch, local_folder

Tensors = dict[str, Tensor]

# What follows a variant's name in the name of a weight file.
_SHARD = re.compile(r"(-\d+-of-\d+)?\.safetensors$")

#: File names of weights: of diffusers' models, and of transformers'.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


def locate(settings: PriorSettings, patterns: list[str]) -> tuple[Path, bool]:
    """The checkpoint's folder, downloaded when ``pretrained`` is a hub id; True when it is the user's own folder.

    Args:
        settings: whose ``pretrained`` and ``revision`` say where.
        patterns: of the files to download.
    """
    source = settings.pretrained
    if not source:
        raise CheckpointError(f"Prior {settings.name!r} needs `pretrained`: a folder or a hub id.")
    folder = local_folder(source, CheckpointError, f"Prior {settings.name!r}")
    return (folder, True) if folder is not None else (download(settings, patterns), False)


def download(settings: PriorSettings, patterns: list[str]) -> Path:
    """The files of the hub repository ``settings.pretrained`` that match ``patterns``."""
    hint = f"Prior {settings.name!r}: pass `pretrained=` a folder with the repository's files."
    return fetch(str(settings.pretrained), patterns, CheckpointError, revision=settings.revision, hint=hint)


def locate_parts(settings: PriorSettings, parts: Mapping[str, str], more: Sequence[str] = ()) -> tuple[Path, bool]:
    """As :func:`locate`, for repositories that hold their weights in several precisions: only one is downloaded.

    Args:
        settings: whose ``pretrained`` and ``revision`` say where.
        parts: folders of components, and how the names of their weight files begin (:data:`DIFFUSERS` or
            :data:`TRANSFORMERS`). Taken as published, in float16 where there is nothing else.
        more: patterns of further files.
    """
    patterns = [
        pattern
        for part, stem in parts.items()
        for pattern in (f"{part}/*.json", f"{part}/{stem}.safetensors", f"{part}/{stem}-*.safetensors")
    ]
    folder, is_local = locate(settings, [*patterns, *more])
    if not is_local:
        lacking = {part: stem for part, stem in parts.items() if not any((folder / part).glob(f"{stem}*.safetensors"))}
        if lacking:
            folder = download(settings, [f"{part}/{stem}.fp16*.safetensors" for part, stem in lacking.items()])
    return folder, is_local


def read_config(folder: Path, classes: str | set[str], key: str = "_class_name") -> dict[str, Any]:
    """``config.json`` of a component's folder, which must be of one of ``classes``.

    Raises:
        CheckpointError: no such folder or file, or of another architecture; the message has both names.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder.parent} is half there: it has no {folder.name}/. {listing(folder.parent)}")
    config = read_json(folder / "config.json")
    expect(config.get(key), {classes} if isinstance(classes, str) else classes, folder / "config.json", key)
    return config


def load_component(
    folder: Path,
    build: Callable[[], Any],
    *,
    stem: str = DIFFUSERS,
    wanted: Callable[[str], bool] = lambda key: True,
    rename: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    optional: Callable[[str], bool] = lambda key: False,
) -> Any:
    """A model with the weights of a component's folder, without initialising it and without a copy.

    Args:
        folder: with the weight files.
        build: makes the model, under meta parameters; it drops what is not needed.
        stem: how the names of the weight files begin (:data:`DIFFUSERS` or :data:`TRANSFORMERS`).
        wanted: which tensors to read, by their name in the files; all others are never read.
        rename: from the files' names to the model's.
        optional: parameters of the model that the files need not have; they must be dropped or tied by ``build``.

    Raises:
        CheckpointError: files missing (named), damaged, or of other shapes or names than the model's.
    """
    files = weight_files(folder, stem)
    return assemble(build, rename(read_tensors(files, wanted)), files[0], optional)


def until(prefix: str, tap: int) -> Callable[[str], bool]:
    """For ``wanted``: everything but the blocks after the tap, which are named ``{prefix}.{index}.``."""
    depth = prefix.count(".") + 1

    def wanted(key: str) -> bool:
        return not (key.startswith(f"{prefix}.") and int(key.split(".")[depth]) > tap)

    return wanted


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


def assemble(
    build: Callable[[], Any], tensors: Tensors, file: Path, optional: Callable[[str], bool] = lambda key: False
) -> Any:
    """The model that ``build`` makes, with these tensors as its parameters; ``file`` is for messages."""
    from accelerate import init_empty_weights

    # Weights are taken over as they are read; initialising them first would cost a minute and twice the memory.
    with init_empty_weights(include_buffers=False):
        model: nn.Module = build()
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        missing = [name for name in missing if not optional(name)]
        if missing or unexpected:
            raise CheckpointError(
                f"{file} does not fit {type(model).__name__}: {_some('missing', missing)}{_some('unknown', unexpected)}"
                "Is it the weights' own config.json, and are all its files there?"
            )
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit {type(model).__name__}: {error}") from error
    return model


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


def expect(found: Any, expected: set[str], file: Path, key: str = "_class_name") -> None:
    """Refuse another architecture."""
    if found not in expected:
        raise CheckpointError(
            f"{file} is of another architecture: {key} is {found!r}, expected {' or '.join(sorted(expected))}. "
            "`vega3d ls priors` shows which prior reads which checkpoint."
        )


def listing(folder: Path) -> str:
    """What is in a folder, for messages."""
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()) if folder.is_dir() else []
    return f"Found: {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}."


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind} {', '.join(names[:3])}{more}. " if names else ""
