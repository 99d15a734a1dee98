"""The host of a checkpoint by itself: without the branch, its adapter merged, in transformers' own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..contracts.errors import SavedBranchError
from ..hosts.loading import load_host, load_processor, read_source
from ..storage.reading import read_json
from ..storage.record import MARK, MERGED_FILE, read_run
from ..storage.versions import library_version
from ..storage.writing import folder_written_whole, write_json
from .reading import holds_branch, saved_folder
from .trainer_folder import NONE, TrainerFolder, adapter_checksums, find_trained, holds_host, with_adapter

SOME = 5


@dataclass(frozen=True)
class ExportedHost:
    """What was written.

    Attributes:
        folder: where.
        host: folder or hub id of the weights that it was made from.
        adapter: what was merged; None without one.
        branch: where the branch stays; None without one.
        tensors: how many weights.
        left_out: names in the checkpoint that were of the branch.
    """

    folder: Path
    host: str
    adapter: str | None
    branch: str | None
    tensors: int
    left_out: int


def find_host_of(
    checkpoint: str | Path, host: str | Path | None = None, *, adapter: str | Path | None = None
) -> TrainerFolder:
    """The parts of a checkpoint, its host among them.

    Args:
        checkpoint: of a whole patched host, or a PEFT adapter, with a branch or without.
        host: what it was trained on; default: what the checkpoint says.
        adapter: as for :func:`~.trainer_folder.find_trained`.

    Raises:
        SavedBranchError: no such folder or hub id, or nobody has said which host.
    """
    folder = saved_folder(checkpoint)
    found = holds_branch(folder)
    if adapter is None and not found and (folder / "adapter_config.json").is_file():
        adapter = folder
    known = host or (checkpoint if holds_host(folder) else _said_by(folder))
    if known is None:
        raise SavedBranchError(
            f"{checkpoint} holds no whole host, and does not say which one it was trained on. Pass host=MODEL (as an "
            "option: --host MODEL)."
        )
    return find_trained(known, folder if found else NONE, adapter=adapter)


def export_host(trained: TrainerFolder, out: str | Path) -> ExportedHost:
    """Write the host of a checkpoint as plain weights of transformers, with its processor.

    An adapter is merged in float32, and each weight is written in the dtype that it had. The branch stays where it is:
    ``vega3d.load_pretrained`` puts it back.

    Args:
        trained: from :func:`find_host_of`.
        out: a folder that is not there yet, or is empty.

    Raises:
        SavedBranchError: the folder holds something, or cannot be written; or the checkpoint is no whole host.
        HostError: the host cannot be loaded.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SavedBranchError(f"{out} holds something already. Choose another place.")
    processor = load_processor(trained.processor)
    loaded = load_host(read_source(trained.host), device="cpu")
    if loaded.missing:
        raise SavedBranchError(f"{trained.host} is no whole host: it lacks {_some(loaded.missing)}.")
    of_branch = [name for name in loaded.surplus if MARK in name]
    others = sorted({*loaded.surplus}.difference(of_branch))
    if others:
        raise SavedBranchError(f"{trained.host} holds what its host has no place for, and no branch: {_some(others)}.")
    model: Any = _merged(loaded.model, trained.adapter)
    record = {
        "library_version": library_version(),
        "host": trained.host,
        "branch": trained.branch,
        "adapter": trained.adapter,
        "merged": [] if trained.adapter is None else adapter_checksums(trained.adapter),
    }
    try:
        with folder_written_whole(out) as folder:
            model.save_pretrained(folder, safe_serialization=True)
            processor.save_pretrained(folder)
            write_json(folder / MERGED_FILE, record)
    except OSError as error:
        raise SavedBranchError(f"{out} cannot be written: {error}. Choose another place.") from error
    count = sum(1 for _ in model.state_dict())
    return ExportedHost(out, trained.host, trained.adapter, trained.branch, count, len(of_branch))


def _merged(model: nn.Module, adapter: str | None) -> nn.Module:
    """The model with its adapter's weights added to its own; summed in float32, since bfloat16 would lose most."""
    if adapter is None:
        return model
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    merged: nn.Module = with_adapter(model.float(), adapter).merge_and_unload(safe_merge=True)  # type: ignore[operator]
    for name, tensor in [*merged.named_parameters(), *merged.named_buffers()]:
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
    return merged


def _said_by(folder: Path) -> str | None:
    """The host that an adapter or a run names."""
    if (folder / "adapter_config.json").is_file():
        name = read_json(folder / "adapter_config.json", SavedBranchError).get("base_model_name_or_path")
        if isinstance(name, str) and name:
            return name
    run = read_run(folder, SavedBranchError)
    model = (run["settings"].get("host") or {}).get("model") if run is not None else None
    return model if isinstance(model, str) else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")
