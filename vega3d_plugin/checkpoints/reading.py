"""Finding a branch in what a trainer wrote: our own files, a PEFT adapter, or a full model's checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts.errors import SavedBranchError
from ..storage.folders import fetch, local_folder
from ..storage.reading import read_json, shards_of
from ..storage.record import CONFIG_FILE, MARK, OTHER_FILES, RUN_FILE, TOWER_FILE, WEIGHTS_FILE, decode_record
from ..storage.weights import read_stored, stored_entries
from .branch_files import SavedBranch, differences, has_branch_files, read_branch

#: Of a hub repository that may hold a branch, what is fetched to find out: all that is small, and a branch's own files.
SMALL_FILES = [
    CONFIG_FILE, WEIGHTS_FILE, RUN_FILE, "adapter_model*", "adapter_config.json", "config.json", "*.index.json",
    "preprocessor_config.json", "processor_config.json",
]  # fmt: skip
#: Whole models in one file, by the order in which they are looked for.
WHOLE_FILES = ["model.safetensors", "pytorch_model.bin"]
#: Files of a whole model, not of an adapter.
FULL_MODEL = tuple(pattern for pattern in OTHER_FILES if not pattern.startswith("adapter"))


def saved_folder(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a saved branch or of a checkpoint with one; of a hub id, the files that hold it are fetched.

    A model's shards that hold nothing of the branch are not fetched, so the folder of a hub id need not be a whole
    model.

    Raises:
        SavedBranchError: no such folder or hub id.
    """
    folder = local_folder(source, SavedBranchError)
    if folder is not None:
        return folder

    def more(*patterns: str) -> Path:
        # All of them each time: what one call fetches need not lie where another's files do.
        wanted = [*SMALL_FILES, *patterns]
        return fetch(str(source), wanted, SavedBranchError, revision=revision, token=token)

    folder = more()
    if holds_branch(folder, partly=True):
        return more(TOWER_FILE) if _names_tower(folder) else folder
    # Safetensors before pickles.
    indices = sorted(folder.glob("*.index.json"), key=lambda index: index.name.startswith("pytorch"))
    shards = next(filter(None, ({*_shards(index).values()} for index in indices)), set())
    if shards:
        return more(*sorted(shards))
    for name in [] if indices else WHOLE_FILES:
        folder = more(name)
        if (folder / name).is_file():
            break
    return folder


def read_saved(source: str | Path, *, revision: str | None = None, token: str | None = None) -> SavedBranch:
    """Read a branch from a folder or a hub id.

    Raises:
        SavedBranchError: no such folder, nothing of a branch in it, files that are damaged, or two branches in one
            folder that are not the same.
    """
    folder = saved_folder(source, revision=revision, token=token)
    found: list[tuple[str, SavedBranch]] = []
    if has_branch_files(folder):
        found.append((WEIGHTS_FILE, read_branch(folder)))
    for files in _sets(folder):
        if any(MARK in name for file in files for name in _names(file)):
            found.append((files[0].name, _from_trainer(folder, files)))
    for name, other in found[1:]:
        _check_same(folder, found[0], (name, other))
    if found:
        return found[0][1]
    searched = [file.name for files in _sets(folder) for file in files]
    raise SavedBranchError(
        f"{folder} holds no branch: no {CONFIG_FILE}, and no tensors named '*{MARK}*' in "
        f"{', '.join(searched[:20]) or 'any checkpoint file'}. " + _advice(folder)
    )


def holds_branch(folder: Path, *, partly: bool = False) -> bool:
    """True when :func:`read_saved` would find a branch; names are read, no weights.

    Args:
        folder: of a checkpoint.
        partly: shards that an index names need not be there.
    """
    if has_branch_files(folder):
        return True
    return any(MARK in name for files in _sets(folder, partly) for file in files for name in _names(file))


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


def _names_tower(folder: Path) -> bool:
    """Whether a branch's own files say that its prior has a tower of its own, which then lies beside them."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    settings = read_json(folder / CONFIG_FILE, SavedBranchError).get("settings")
    prior = settings.get("prior") if isinstance(settings, dict) else None
    return isinstance(prior, dict) and prior.get("tower") is not None


def _shards(index: Path) -> dict[str, str]:
    """Of the tensors of a branch that an index names, the file of each: names of files in the index's own folder."""
    return {key: file.name for key, file in shards_of(index, SavedBranchError).items() if MARK in key}


@dataclass(frozen=True)
class _FileSet:
    """How the weights of one kind of checkpoint are named: in one file, or in shards that an index names."""

    stem: str
    suffix: str

    def files(self, folder: Path, partly: bool) -> Iterator[list[Path]]:
        whole, index = folder / f"{self.stem}{self.suffix}", folder / f"{self.stem}{self.suffix}.index.json"
        others = sorted(file for file in folder.glob(f"{self.stem}*{self.suffix}") if file != whole)
        if whole.is_file():
            yield [whole]
        if index.is_file():
            # Shards that the index does not name are left over from an earlier save.
            named = set(_shards(index).values())
            lost = sorted(name for name in named if not (folder / name).is_file())
            if lost and not partly:
                raise SavedBranchError(
                    f"{folder} is incomplete: {index.name} names {lost[0]}, which is missing. Download it again."
                )
            others = [folder / name for name in sorted(named.difference(lost))]
        if others:
            yield others


# In the order in which they are searched for a branch.
_SETS = tuple(_FileSet(stem, end) for end, stems in (
    (".safetensors", ("adapter_model", "model")), (".bin", ("adapter_model", "pytorch_model"))
) for stem in stems)  # fmt: skip


def _sets(folder: Path, partly: bool = False) -> Iterator[list[Path]]:
    for kind in _SETS:
        yield from kind.files(folder, partly)


def _from_trainer(folder: Path, files: Sequence[Path]) -> SavedBranch:
    found: dict[str, Tensor] = {}
    for file in files:
        found |= _read(file)
    data = found.pop("record", None)
    if data is None:
        raise SavedBranchError(f"{folder} holds a branch without its record; it was saved by something else.")
    return SavedBranch(str(folder), decode_record(data, str(files[0])), found)


def _check_same(folder: Path, first: tuple[str, SavedBranch], second: tuple[str, SavedBranch]) -> None:
    """Refuse a folder that holds two branches, of which nothing says which one is meant."""
    (one, a), (two, b) = first, second
    found = differences(_without_version(a.record), _without_version(b.record))
    if found:
        lines = [f"{key} is {here!r:.60} in the first, {there!r:.60} in the second" for key, here, there in found]
        what = "; ".join(lines[:3]) + ("; ..." if len(lines) > 3 else "")
    else:
        what = _first_difference(a.tensors, b.tensors)
    if what:
        raise SavedBranchError(
            f"{folder} holds two branches, one in {one} and one in {two} ({what}), saved at different times. Keep the "
            "one that you mean, and move the other to another folder."
        )


def _without_version(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what tells when and where it was saved, not what."""
    settings = dict(record["settings"])
    prior = settings.get("prior")
    if isinstance(prior, Mapping):
        # A tower lies beside the branch's own files, and elsewhere for a trainer.
        settings["prior"] = {key: value for key, value in prior.items() if key != "tower"}
    return {**{key: value for key, value in record.items() if key != "library_version"}, "settings": settings}


def _first_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    if first.keys() != second.keys():
        return "they have tensors of other names"
    for name, a in first.items():
        b = second[name]
        # One of them may have been saved in half precision.
        dtype = min((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
        if a.shape != b.shape or not torch.equal(a.to(dtype), b.to(dtype)):
            return f"{name} differs"
    return ""


def _advice(folder: Path) -> str:
    steps = {path.name.rpartition("-")[2]: path for path in folder.glob("checkpoint-*") if path.is_dir()}
    numbers = [step for step in steps if step.isdecimal()]
    if numbers:
        return f"It is a run's output folder: name a checkpoint in it, such as {steps[max(numbers, key=int)]}."
    return "With PEFT, train with modules_to_save=['vega3d']."


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a branch in a file, by what stands behind :data:`MARK` in their names."""
    inside = [entry for entry in stored_entries(file) if MARK in entry.key]
    return {key.rpartition(MARK)[2]: tensor for key, tensor in read_stored(inside)}


def _snapshot(repo_id: str, options: Mapping[str, Any]) -> Path:
    """The folder of a hub id in the cache, where ``from_pretrained`` has just put it, with the branch's own files."""

    from huggingface_hub import snapshot_download

    places = {key: options[key] for key in ("revision", "cache_dir", "token") if options.get(key) is not None}
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, TOWER_FILE], **places))
    except Exception as error:
        # Going on would train or evaluate a new branch in place of a trained one.
        raise SavedBranchError(
            f"It is not known whether {repo_id!r} holds a branch: {type(error).__name__}: {error}. Download it "
            f"(hf download {repo_id}), and give the script the folder."
        ) from error


def _names(file: Path) -> list[str]:
    return [entry.key for entry in stored_entries(file)]
