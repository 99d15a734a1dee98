"""Whether a trainer's checkpoint is whole: every file there, none cut short."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contracts.errors import Vega3dError
from ..contracts.paths import path_problem
from ..contracts.printable import brief
from ..storage.checksums import file_checksum
from ..storage.reading import named_files, read_json
from ..storage.record import RUN_FILE

#: What Trainer knows of a run, in each checkpoint.
STATE = "trainer_state.json"
#: States of the optimiser: of one process, of FSDP whole and in shards, of DeepSpeed.
OPTIMISERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*", "pytorch_model_fsdp*")
SCHEDULER = "scheduler.pt"
RANDOM = "rng_state*.pth"
_WEIGHTS = ("adapter_model", "model", "pytorch_model")
_ZIPPED = ("optimizer.pt", SCHEDULER, "rng_state.pth")


def file_list(folder: Path) -> dict[str, dict[str, Any]]:
    """The files in a folder and below by their path in it: sizes, and a checksum of those that carry none themselves.

    What ``torch.save`` writes does; a checksum of weights in safetensors takes a second for 8 GB.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            more = {"checksum": file_checksum(path)} if path.suffix == ".safetensors" else {}
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, **more}
    return found


def defect(checkpoint: Path, *, quick: bool = False) -> str:
    """What is wrong with a checkpoint, for a message; empty when a run can go on from it.

    Checkpoints of this version list their files; in older ones the files are looked for that Trainer writes in each
    case. Either way, what carries a checksum is read through.

    Args:
        checkpoint: its folder.
        quick: look at names, sizes and headers alone.
    """
    try:
        state = read_json(checkpoint / STATE, _DefectError)
        if not isinstance(state.get("global_step"), int):
            return f"{STATE} names no global_step"
        listed = _listed(checkpoint)
        problems = _by_names(checkpoint) if listed is None else _by_list(checkpoint, listed, quick)
        return next(problems, "") or next(_damaged(checkpoint, quick), "")
    except _DefectError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error}"


class _DefectError(Vega3dError):
    """A file that cannot be read."""


def _listed(checkpoint: Path) -> Mapping[str, Any] | None:
    if not (checkpoint / RUN_FILE).is_file():
        return None
    files = read_json(checkpoint / RUN_FILE, _DefectError).get("files")
    return files if isinstance(files, dict) else None


def _by_list(checkpoint: Path, listed: Mapping[str, Any], quick: bool) -> Iterator[str]:
    for name, said in listed.items():
        path = checkpoint / name
        if path_problem(name) or name.startswith("/") or ".." in Path(name).parts:
            yield f"{RUN_FILE} names {brief(name, 80)}, which is no file in it"
            return
        if not isinstance(said, Mapping) or path.resolve() == checkpoint.resolve():
            yield f"{RUN_FILE} has no size of {brief(name, 80)}"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != said.get("bytes"):
            yield f"{name} has {path.stat().st_size:,} bytes, it was written with {brief(said.get('bytes'), 20)}"
    for name, said in listed.items():
        if not quick and "checksum" in said and said["checksum"] != file_checksum(checkpoint / name):
            yield f"{name} has changed since it was written"


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
        for file in named_files(index, _DefectError):
            if not file.is_file():
                yield f"{file.name}, which {index.name} names, is missing"


def _damaged(checkpoint: Path, quick: bool) -> Iterator[str]:
    for path in sorted(checkpoint.iterdir()):
        if not path.is_file():
            continue
        if path.suffix in (".pt", ".pth", ".bin") and (problem := _torch_file(path, quick)):
            yield f"{path.name} is damaged: {problem}"
        if path.suffix == ".safetensors" and (problem := _safetensors(path)):
            yield f"{path.name} is damaged: {problem}"


def _torch_file(path: Path, quick: bool) -> str:
    """What ``torch.save`` writes is a zip file, whose list of contents, with their checksums, is at the end.

    ``torch.load`` does not compare these, and goes on with whatever it finds.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            # Others may be of the format before torch 1.6.
            return "" if path.stat().st_size and path.name not in _ZIPPED else "it is empty or no file of torch.save"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = None if quick else archive.testzip()
            return f"{bad} in it has changed" if bad else ""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        return str(error)


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
