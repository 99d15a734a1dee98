"""What there is in a trainer's checkpoint: the branch, an adapter, a whole host, its processor, how data was shown."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..contracts.errors import SavedBranchError, Vega3dWarning
from ..contracts.paths import given_path
from ..contracts.printable import brief, first_line
from ..hosts.loading import PROCESSOR_FILES
from ..storage.checksums import checksum_of, file_checksum
from ..storage.reading import read_json
from ..storage.record import MERGED_FILE, read_run
from ..storage.weights import listing, stored_entries
from .reading import FULL_MODEL, holds_branch, read_saved, saved_folder

#: Weights of a PEFT adapter.
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
#: Stands for "leave it out", where harnesses can only pass text.
NONE = "none"


@dataclass(frozen=True)
class TrainerFolder:
    """Where the parts of a trained model are.

    Attributes:
        host: folder or hub id of the host's weights.
        branch: folder of the branch; None without one.
        adapter: folder or hub id of the PEFT adapter; None without one.
        processor: folder or hub id of the host's processor.
        data: the settings of its data, where the run wrote them; else empty.
        kind: name of the host's adapter, where the run wrote it.
    """

    host: str
    branch: str | None
    adapter: str | None
    processor: str
    data: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None


def find_trained(
    host: str | Path,
    branch: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    processor: str | Path | None = None,
) -> TrainerFolder:
    """Look into a checkpoint.

    Args:
        host: what the branch was trained on, or a checkpoint of a whole trained host.
        branch: a saved branch or a trainer's checkpoint, whose host is taken where it holds one; default: ``host``;
            ``none``: no branch.
        adapter: a PEFT adapter; default: ``branch``, when it holds one that is not in the host's weights already;
            ``none``: without it.
        processor: default: that of the checkpoint, which has the limits of training, else the host's. Of a host that
            was not trained, a checkpoint named here also says how pictures are shown.

    Raises:
        SavedBranchError: no such folder or hub id; no branch is given, and ``host`` holds none; branch and adapter
            are of different runs; or the adapter is in the host's weights already.
    """
    if branch is None:
        problem = _lacks_branch(host)
        if problem is not None:
            raise SavedBranchError(
                f"{host} holds no branch{problem}. Name a saved branch or a checkpoint with branch=DIR (as an option: "
                "--branch DIR). To evaluate the host without a branch, pass branch=none."
            )
        branch = host
    folder = None if str(branch) == NONE else saved_folder(branch)
    chosen = adapter is not None
    if adapter is None and folder is not None and (folder / "adapter_config.json").is_file():
        adapter = folder
    wanted = None if adapter is None or str(adapter) == NONE else str(adapter)
    if wanted is not None and _is_merged(Path(host).expanduser(), wanted):
        if not chosen:
            wanted = None
        else:
            raise SavedBranchError(
                f"The weights of {host} have the adapter {adapter} in them already, as {MERGED_FILE} says: loaded once "
                "more it would count twice. Leave the adapter out, or take the host that it was trained on."
            )
    if folder is not None and wanted is not None:
        _check_one_run(folder, Path(wanted).expanduser())
    on_hub = folder is not None and not Path(branch).expanduser().is_dir()
    whole = folder is not None and (_is_whole_repo(folder) if on_hub else holds_host(folder))
    whole = whole and folder is not None and folder.resolve() != Path(host).resolve()
    checkpoints = [Path(place) for place in (folder, wanted) if place is not None]
    if processor is None:
        beside = (place for place in checkpoints if any((place / name).is_file() for name in PROCESSOR_FILES))
        processor = next(beside, host)
    runs = (read_run(place, SavedBranchError) for place in (*checkpoints, Path(host), Path(processor)))
    run = next((found for found in runs if found is not None), None)
    settings = {} if run is None else run["settings"]
    return TrainerFolder(
        # Of a hub id no more may be in the folder than what holds the branch.
        host=str((branch if on_hub else folder) if whole else host),
        branch=None if folder is None else str(folder),
        adapter=wanted,
        processor=str(processor),
        data=dict(settings.get("data") or {}),
        kind=(settings.get("host") or {}).get("adapter"),
    )


def adapter_checksums(adapter: str | Path) -> list[str]:
    """Of the weights of an adapter in a folder here; empty for one on the hub."""
    folder = Path(adapter).expanduser()
    return [file_checksum(folder / name) for name in ADAPTERS if (folder / name).is_file()]


def _is_merged(host: Path, adapter: str) -> bool:
    """Whether ``vega3d export host`` has put this adapter into the host's weights."""
    if not (host / MERGED_FILE).is_file():
        return False
    merged, own = read_json(host / MERGED_FILE, SavedBranchError), adapter_checksums(adapter)
    return bool(own) and merged.get("merged") == own


def _check_one_run(branch: Path, adapter: Path) -> None:
    """A branch and an adapter that lie in two folders are parts of one model only if they were trained together.

    Raises:
        SavedBranchError: they were not; shows what tells.
    """
    if not adapter.is_dir() or adapter.resolve() == branch.resolve():
        return
    of_branch, of_adapter = _traces(branch), _traces(adapter)
    if holds_branch(adapter):
        ours, theirs = read_saved(branch), read_saved(adapter)
        of_branch["weights of the branch"] = checksum_of(ours.tensors)
        of_adapter["weights of the branch"] = checksum_of(theirs.tensors)
    differ = [key for key in of_branch if key in of_adapter and of_branch[key] != of_adapter[key]]
    if differ:
        lines = [
            f"  {what}: {folder} ({', '.join(f'{key}: {brief(traces[key])}' for key in differ)})"
            for what, folder, traces in (("branch", branch, of_branch), ("adapter", adapter, of_adapter))
        ]
        raise SavedBranchError(
            "The branch and the adapter are of different runs:\n" + "\n".join(lines) + "\nName one checkpoint as the "
            "branch, and its adapter is taken too, or pass adapter=none (as an option: --adapter none)."
        )
    if not holds_branch(adapter):
        warnings.warn(
            f"The adapter {adapter} was trained without a branch, and nothing says that the branch {branch} was "
            "trained on it.",
            Vega3dWarning,
            stacklevel=3,
        )


def _traces(folder: Path) -> dict[str, Any]:
    """What tells of the run that a folder is of."""
    run = read_run(folder, SavedBranchError)
    return {} if run is None else {key: run.get(key) for key in ("recipe", "settings", "step", "data") if key in run}


def _lacks_branch(host: str | Path) -> str | None:
    """Empty text or why, when a branch is not found in a folder or hub id; None when it is."""
    try:
        return None if holds_branch(saved_folder(host)) else ""
    except SavedBranchError as error:
        return f" that can be read ({error})"


def holds_host(folder: Path) -> bool:
    """True for the checkpoint of a whole host; an adapter or a branch alone is none."""
    return (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in FULL_MODEL)


def _is_whole_repo(folder: Path) -> bool:
    """As :func:`holds_host`, of the files that were fetched to look for a branch."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def with_adapter(model: nn.Module, adapter: str | None) -> nn.Module:
    """The model inside its PEFT adapter, in eval mode; itself without one.

    Raises:
        SavedBranchError: the adapter cannot be loaded.
    """
    if adapter is None:
        return model
    from peft import PeftModel

    folder = given_path(adapter, SavedBranchError, "The adapter")
    if folder.is_dir():
        check_adapter(folder)
    try:
        loaded: nn.Module = PeftModel.from_pretrained(model, adapter).eval()
    except Exception as error:
        # PEFT passes on what its readers raise: UnpicklingError, KeyError, TypeError, SafetensorError, ...
        raise SavedBranchError(
            f"The adapter {adapter} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return loaded


def check_adapter(folder: Path) -> None:
    """Look at an adapter's files before PEFT reads them, which takes their word for every size.

    Raises:
        SavedBranchError: no adapter_config.json, files that are damaged or hold more than tensors, or a rank that is
            larger than every tensor beside it.
    """
    config = read_json(folder / "adapter_config.json", SavedBranchError).check_sizes()
    found = [entry for name in ADAPTERS for file in sorted(folder.glob(name)) for entry in stored_entries(file)]
    if not found:
        raise SavedBranchError(f"{folder} holds no weights of an adapter: {' or '.join(ADAPTERS)}. {listing(folder)}")
    largest = max((side for entry in found for side in entry.shape), default=0)
    ranks = config.get("rank_pattern") or {}
    for key, rank in {"r": config.get("r"), **(ranks if isinstance(ranks, dict) else {})}.items():
        if isinstance(rank, int) and rank > largest:
            raise config.wrong(key, f"is {brief(rank)}, more than any side of the tensors beside it ({largest:,})")
