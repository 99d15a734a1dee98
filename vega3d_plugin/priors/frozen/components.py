"""Reading a checkpoint folder: what of it is needed, tensor by tensor, with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...contracts.errors import CheckpointError
from ...contracts.printable import brief
from ...contracts.settings import PriorSettings
from ...storage.folders import fetch, local_folder
from ...storage.reading import JsonObject
from ...storage.weights import DIFFUSERS, Tensors, listing, read_json, read_tensors, weight_files
from .without_weights import without_weights


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


def read_config(folder: Path, classes: str | set[str], key: str = "_class_name") -> JsonObject:
    """``config.json`` of a component's folder, which must be of one of ``classes``.

    Raises:
        CheckpointError: no such folder or file, or of another architecture; the message has both names.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder.parent} is incomplete: it has no {folder.name}/. {listing(folder.parent)}")
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
        build: makes the model, its layers' weights on the meta device; it drops what is not needed.
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
        if not key.startswith(f"{prefix}."):
            return True
        index = key.split(".")[depth]
        # Another name is no block; the model says that it does not know it.
        return not (index.isdecimal() and len(index) < 10) or int(index) <= tap

    return wanted


def assemble(
    build: Callable[[], Any], tensors: Tensors, file: Path, optional: Callable[[str], bool] = lambda key: False
) -> Any:
    """The model that ``build`` makes, with these tensors as its parameters; ``file`` is for messages."""
    # Weights are taken over as they are read; initialising them first would cost a minute and twice the memory.
    model: nn.Module = without_weights(build)
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        missing = [name for name in missing if not optional(name)]
        if missing or unexpected:
            raise CheckpointError(
                f"{file} does not fit {type(model).__name__}: {_some('missing', missing)}{_some('unknown', unexpected)}"
                "Is it the weights' own config.json, and are all its files there?"
            )
    except (RuntimeError, TypeError, ValueError) as error:
        problem = brief(str(error), 1000) if len(str(error)) > 1000 else str(error)
        raise CheckpointError(f"{file} does not fit {type(model).__name__}: {problem}") from error
    return model


def expect(found: Any, expected: set[str], file: Path, key: str = "_class_name") -> None:
    """Refuse another architecture."""
    if not isinstance(found, str) or found not in expected:
        raise CheckpointError(
            f"{file} is of another architecture: {key} is {brief(found)}, expected {' or '.join(sorted(expected))}. "
            "`vega3d ls priors` shows which prior reads which checkpoint."
        )


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind} {', '.join(names[:3])}{more}. " if names else ""
