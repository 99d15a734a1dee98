"""What is compared: sides with a name and several runs each, as checkpoints or as files of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.reading import holds_branch, saved_folder
from ...checkpoints.trainer_folder import NONE, holds_host
from ...contracts.errors import SavedBranchError, SettingsError
from ...hosts.loading import PROCESSOR_FILES
from ...storage.reading import read_json
from ...storage.record import read_run
from ...training.manifest import find_checkpoint
from ..harness_host import HostArguments


@dataclass(frozen=True)
class Run:
    """One run of a side.

    Attributes:
        source: as it was given.
        answers: a file of answers; None: a model.
        arguments: of the model.
        branch: whether it has one.
    """

    source: str
    answers: Path | None = None
    arguments: HostArguments | None = None
    branch: bool = False


@dataclass(frozen=True)
class Side:
    """Runs that differ in their seeds alone. Attributes: ``name``; ``runs``."""

    name: str
    runs: tuple[Run, ...]

    @property
    def branch(self) -> bool:
        """Whether its runs are models with a branch, which have controls."""
        return all(run.branch for run in self.runs)


def read_sides(given: Sequence[str], model: str | None = None, **common: Any) -> list[Side]:
    """Sides from ``NAME=RUN,RUN``, ``RUN`` or ``NAME=none``, the host alone.

    Args:
        given: at least one. A run is a checkpoint, an output folder of ``vega3d train`` (its last checkpoint counts), a
            saved branch, a PEFT adapter, a whole host, or a file of answers (``.jsonl``).
        model: the host; default: what the checkpoints say that they were trained from.
        common: further arguments of every model.

    Raises:
        SettingsError: two sides of one name, or a host that nothing names.
        SavedBranchError: a folder without anything that could be compared.
    """
    pairs = [_named(text) for text in given]
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"Two sides are called {twice!r}. Give each a name: with=out/a1,out/a2 without=out/b1")
    for name, runs in pairs:
        _refuse_twice(name, runs)
    every = [run for _, runs in pairs for run in runs]
    host = model or next((found for run in every if (found := _host_of(run))), None)
    shown = next(filter(None, map(_shown_by, every)), {})
    return [Side(name, tuple(_run(source, host, model, shown, common) for source in runs)) for name, runs in pairs]


def _named(text: str) -> tuple[str, list[str]]:
    name, equals, rest = text.partition("=")
    if not equals:
        path = Path(text)
        name = (
            path.stem if path.suffix == ".jsonl" else "/".join(path.parts[-2:]) if "checkpoint" in text else path.name
        )
        rest = text
    runs = [run for run in rest.split(",") if run]
    if not name or not runs:
        raise SettingsError(f"{text!r} is no side: expected NAME=RUN,RUN such as with=out/a1,out/a2.")
    return name, runs


def _refuse_twice(name: str, runs: Sequence[str]) -> None:
    """One run under two names would count as two seeds, which differ in nothing."""
    places: dict[Path, str] = {}
    for run in runs:
        if run == NONE:
            place = Path(NONE)
        else:
            place = (Path(run).expanduser() if run.endswith(".jsonl") else _folder(run)).resolve()
        if place in places:
            raise SettingsError(
                f"Side {name!r} names {places[place]} and {run}, which are the same run: one run is not two seeds."
            )
        places[place] = run


def _run(source: str, host: str | None, model: str | None, shown: dict[str, Any], common: dict[str, Any]) -> Run:
    if source.endswith(".jsonl"):
        return Run(source, answers=Path(source).expanduser())

    def of(patched: bool, **where: Any) -> Run:
        return Run(source, arguments=HostArguments.parse({**common, **where}), branch=patched)

    if source == NONE:
        return of(False, pretrained=_needed(host, source), branch=NONE, **shown)
    folder = _folder(source)
    branch, whole = holds_branch(folder), holds_host(folder)
    if whole:
        return of(branch, pretrained=str(folder), branch=None if branch else NONE)
    own = _needed(model or _host_of(source) or host, source)
    if branch:
        return of(True, pretrained=own, branch=str(folder))
    if (folder / "adapter_config.json").is_file():
        return of(False, pretrained=own, branch=NONE, adapter=str(folder))
    raise SavedBranchError(f"{source} holds no branch, no adapter and no whole host: nothing to compare.")


def _folder(source: str) -> Path:
    folder = saved_folder(source)
    if holds_branch(folder) or holds_host(folder) or (folder / "adapter_config.json").is_file():
        return folder
    return find_checkpoint(folder) or folder


def _host_of(source: str) -> str | None:
    """What a checkpoint was trained from, as its run or PEFT wrote it."""
    if source == NONE or source.endswith(".jsonl"):
        return None
    folder = _folder(source)
    run = read_run(folder, SavedBranchError)
    if run is not None:
        model = (run["settings"].get("host") or {}).get("model")
        if isinstance(model, str):
            return model
    config = folder / "adapter_config.json"
    base = read_json(config, SavedBranchError).get("base_model_name_or_path") if config.is_file() else None
    return base if isinstance(base, str) and base else None


def _shown_by(source: str) -> dict[str, Any]:
    """What lets the host alone see pictures as a checkpoint saw them in training; else a difference would be theirs."""
    if source == NONE or source.endswith(".jsonl"):
        return {}
    folder = _folder(source)
    run = read_run(folder, SavedBranchError)
    if run is None or not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return {}
    limits = run["settings"].get("host") or {}
    kept = {key: limits[key] for key in ("min_pixels", "max_pixels") if limits.get(key) is not None}
    return {"processor": str(folder), **kept}


def _needed(host: str | None, source: str) -> str:
    if host is None:
        raise SettingsError(f"{source} does not say which host it was trained from. Name it: --model MODEL.")
    return host
