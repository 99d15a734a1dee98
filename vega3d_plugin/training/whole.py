"""Whether a trainer's checkpoint is whole: every file there, none cut short."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contracts.errors import Vega3dError
from ..storage.json_files import read_object
from ..storage.record import RUN_FILE

#: What Trainer knows of a run, in each checkpoint.
STATE = "trainer_state.json"
#: States of the optimiser: of one process, of FSDP whole and in shards, of DeepSpeed.
OPTIMISERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*", "pytorch_model_fsdp*")
SCHEDULER = "scheduler.pt"
RANDOM = "rng_state*.pth"
_WEIGHTS = ("adapter_model", "model", "pytorch_model")
_ZIPPED = ("optimizer.pt", SCHEDULER, "rng_state.pth")
# Files up to this size are read through, in bytes; of larger ones the beginning and the end are looked at.
_READ = 64 << 20


def file_sizes(folder: Path) -> dict[str, int]:
    """The files in a folder and below by their path in it, and their sizes in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def defect(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, for a message; empty when a run can go on from it.

    Checkpoints of this version list their files with their sizes; in older ones the files are looked for that Trainer
    writes in each case. Either way, each file must have the beginning and the end of its kind.
    """
    try:
        state = read_object(checkpoint / STATE, _DefectError)
        if not isinstance(state.get("global_step"), int):
            return f"{STATE} names no global_step"
        listed = _listed(checkpoint)
    except _DefectError as error:
        return str(error)
    problems = _by_list(checkpoint, listed) if listed is not None else _by_names(checkpoint)
    return next(problems, "") or next(_cut(checkpoint), "")


class _DefectError(Vega3dError):
    """A file that cannot be read."""


def _listed(checkpoint: Path) -> Mapping[str, Any] | None:
    if not (checkpoint / RUN_FILE).is_file():
        return None
    files = read_object(checkpoint / RUN_FILE, _DefectError).get("files")
    return files if isinstance(files, dict) else None


def _by_list(checkpoint: Path, listed: Mapping[str, Any]) -> Iterator[str]:
    for name, size in listed.items():
        path = checkpoint / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes, it was written with {size!r:.20}"


def _by_names(checkpoint: Path) -> Iterator[str]:
    if not any(any(checkpoint.glob(pattern)) for pattern in OPTIMISERS):
        yield "optimizer.pt is missing"
    # DeepSpeed keeps its own scheduler with the optimiser's states.
    if not (checkpoint / SCHEDULER).is_file() and not any(checkpoint.glob("global_step*")):
        yield f"{SCHEDULER} is missing"
    if not any(checkpoint.glob(RANDOM)):
        yield "rng_state.pth is missing"
    if not any(any(checkpoint.glob(f"{stem}*{end}")) for stem in _WEIGHTS for end in (".safetensors", ".bin")):
        yield "its weights are missing"
    for index in checkpoint.glob("*.index.json"):
        for name in sorted(set(_shards(index))):
            if not (checkpoint / name).is_file():
                yield f"{name}, which {index.name} names, is missing"


def _shards(index: Path) -> list[str]:
    shards = read_object(index, _DefectError).get("weight_map")
    return [str(name) for name in shards.values()] if isinstance(shards, dict) else []


def _cut(checkpoint: Path) -> Iterator[str]:
    for path in sorted(checkpoint.iterdir()):
        if not path.is_file():
            continue
        if path.suffix in (".pt", ".pth", ".bin") and (problem := _torch_file(path)):
            yield f"{path.name} is damaged: {problem}"
        if path.suffix == ".safetensors" and (problem := _safetensors(path)):
            yield f"{path.name} is damaged: {problem}"


def _torch_file(path: Path) -> str:
    """What ``torch.save`` writes is a zip file, whose list of contents is at the end."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            # Others may be of the format before torch 1.6.
            return "" if path.stat().st_size and path.name not in _ZIPPED else "it is empty or no file of torch.save"
    try:
        with zipfile.ZipFile(path) as archive:
            if path.stat().st_size <= _READ:
                bad = archive.testzip()
                return f"{bad} in it has changed" if bad else ""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        return str(error)
    return ""


def _safetensors(path: Path) -> str:
    """The header says where the last tensor ends, which is where the file does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size, 100 << 20):
            return "its header is cut short"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "its header cannot be read"
    return "" if size == expected else f"it has {size:,} bytes, its header says {expected:,}"
