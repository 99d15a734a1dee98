"""Correspondence and read-outs of every candidate on every set, by the library's own analysis."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import vega3d
from vega3d_plugin.analysis.protocols import Protocol, Visible
from vega3d_plugin.analysis.readouts.records import PriorReadout
from vega3d_plugin.analysis.readouts.training import TrainingSettings
from vega3d_plugin.analysis.records import ITSELF, PriorScores, bins
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.storage.writing import write_json

from .networks import CANDIDATES, Candidate, candidates
from .pictures import PictureSet
from .rows import VisibleByRows

FIGURES = ("recall@1", "centred")
#: Judged beside every trained network, on the frames as it sees them.
CONTROLS = ("pixels", "position only", "same position", "views shuffled")
#: Of the read-outs.
READ = ("points", "auc@30", "d1")
READ_CONTROLS = ("pixels", "position only")
#: Fewer steps than the library's 600 and 300, so that a set takes a quarter of an hour of one core.
TRAINING = TrainingSettings(steps=150, depth_steps=150)
Found = dict[str, Any]


def correspondence(each: PictureSet, folder: Path, say: Callable[[str], None]) -> None:
    """Judge every candidate on a set, and keep what is found in a file for each."""
    for candidate, scenes, file in _missing(each, folder, "correspondence"):
        scores = _scores(candidate.first, scenes, **_alike(folder, CONTROLS))
        twins = [_scores(twin, scenes, **_alike(folder, ())) for twin in candidate.twins]
        found: Found = {
            **_about(each, candidate, scenes),
            "units": "scenes" if len(scenes) > 1 else "rows of tokens",
            "tokens": sum(sum(scene.shared) for scene in scores.scenes),
            "trained": None if candidate.prior is None else _units(scores, ITSELF),
            "twins": [_units(twin, ITSELF) for twin in twins],
            "controls": {control: _units(scores, control) for control in CONTROLS},
        }
        write_json(file, found)
        say(f"{each.name}: {candidate.name}")


def readouts(each: PictureSet, folder: Path, say: Callable[[str], None]) -> None:
    """Train read-outs of depth and poses on every candidate's features, and judge them on scenes held out."""
    for candidate, scenes, file in _missing(each, folder, "readout"):
        controls = READ_CONTROLS if candidate.name == CANDIDATES[0] else ()
        own = _figures(candidate.first, scenes, **_alike(folder, controls))
        twins = [_figures(twin, scenes, **_alike(folder, ())) for twin in candidate.twins]
        found: Found = {
            **_about(each, candidate, scenes),
            "units": "scenes held out",
            "trained": None if candidate.prior is None else _read(own, ITSELF),
            "twins": [_read(twin, ITSELF) for twin in twins],
            "controls": {control: _read(own, control) for control in own.controls if control != ITSELF},
        }
        write_json(file, found)
        say(f"{each.name}, read-out: {candidate.name}")


def _scores(prior: Prior, scenes: Sequence[Scene], **alike: Any) -> PriorScores:
    protocol: Protocol = VisibleByRows() if len(scenes) == 1 else Visible()
    with warnings.catch_warnings():
        # The rows of a single pair stand for pairs.
        warnings.simplefilter("ignore", AnalysisWarning)
        return vega3d.analysis.correspondence(prior, scenes, protocol=protocol, **alike).priors[0]


def _figures(prior: Prior, scenes: Sequence[Scene], **alike: Any) -> PriorReadout:
    return vega3d.analysis.readout(prior, scenes, views=8, held_out=0.5, training=TRAINING, **alike).priors[0]


def read(folder: Path, what: str) -> dict[tuple[str, str], Found]:
    """What was found, by set and candidate."""
    found = {}
    for file in sorted(folder.glob(f"{what}-*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        found[values["set"], values["candidate"]] = values
    return found


def _missing(each: PictureSet, folder: Path, what: str) -> Iterator[tuple[Candidate, list[Scene], Path]]:
    """What is to be judged: a candidate, the scenes, and the file for what is found."""
    files = {name: folder / f"{what}-{each.name}-{name}.json" for name in CANDIDATES}
    wanted = {name: file for name, file in files.items() if not file.exists()}
    if not wanted or each.open is None:
        return
    scenes, made = each.open(), candidates(each.size)
    for name, file in wanted.items():
        yield made[name](), scenes, file


def _alike(folder: Path, controls: Sequence[str]) -> dict[str, Any]:
    """What both analyses are told: all views at once, kept figures, and scenes whose geometry is known."""
    return {"contexts": ("views",), "controls": controls, "records": folder / "records", "check": False}


def _about(each: PictureSet, candidate: Candidate, scenes: Sequence[Scene]) -> Found:
    return {
        "set": each.name,
        "what": each.what,
        "real": each.real,
        "candidate": candidate.name,
        "kind": candidate.kind,
        "size": list(each.size),
        "scenes": [scene.fingerprint for scene in scenes],
        "fingerprints": [prior.fingerprint for prior in (candidate.first, *candidate.twins)],
    }


def _units(scores: PriorScores, control: str) -> dict[str, list[float | None]]:
    """What intervals are drawn over, of each figure, and of the first one within each bin of rotation."""
    found = {figure: _plain(scores.units(control, figure)) for figure in FIGURES}
    for low, high in bins():
        inside = scores.units(control, FIGURES[0], (low, high))
        if any(value == value for value in inside):
            found[f"{FIGURES[0]}, {low:g} to {high:g} degrees"] = _plain(inside)
    return found


def _read(readout: Any, control: str) -> dict[str, list[float | None]]:
    return {figure: _plain(readout.units(figure, control)) for figure in READ}


def _plain(values: Sequence[float]) -> list[float | None]:
    """Four digits; NaN as JSON has it: null."""
    return [None if value != value else round(value, 4) for value in values]
