"""Correspondence and read-outs of every candidate on every set, by the library's own analysis."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vega3d
from vega3d_plugin.analysis.protocols import Protocol, Visible
from vega3d_plugin.analysis.readouts.training import TrainingSettings
from vega3d_plugin.analysis.records import ITSELF, PriorScores, bins
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.storage.writing import write_json

from .networks import Candidate, candidates
from .pictures import PictureSet
from .rows import VisibleByRows

FIGURES = ("recall@1", "centred")
#: Judged beside every trained network, on the frames as it sees them.
CONTROLS = ("pixels", "position only", "same position", "views shuffled")
#: Of the read-outs.
READ = ("points", "auc@30", "d1")
READ_CONTROLS = ("pixels", "position only")
#: Shorter than the library's, so that all of it takes an hour of one core.
TRAINING = TrainingSettings(steps=200, depth_steps=200)
Found = dict[str, Any]


def correspondence(each: PictureSet, folder: Path, say: Callable[[str], None]) -> None:
    """Judge every candidate on a set, and keep what is found in a file for each."""
    work = _missing(each, folder, "correspondence")
    if not work:
        return
    scenes = each.open() if each.open is not None else []
    protocol: Protocol = VisibleByRows() if len(scenes) == 1 else Visible()

    def judge(prior: Prior, controls: Sequence[str]) -> PriorScores:
        with warnings.catch_warnings():
            # The rows of a single pair stand for pairs.
            warnings.simplefilter("ignore", AnalysisWarning)
            result = vega3d.analysis.correspondence(
                prior,
                scenes,
                contexts=("views",),
                protocol=protocol,
                controls=controls,
                records=folder / "records",
                check=False,
            )
        return result.priors[0]

    made = candidates(each.size)
    for name, file in work.items():
        candidate = made[name]()
        scores = judge(candidate.first, CONTROLS)
        twins = [judge(twin, ()) for twin in candidate.twins]
        found: Found = {
            **_about(each, candidate, scenes),
            "units": "scenes" if len(scenes) > 1 else "rows of tokens",
            "tokens": sum(sum(scene.shared) for scene in scores.scenes),
            "trained": None if candidate.prior is None else _units(scores, ITSELF),
            "twins": [_units(twin, ITSELF) for twin in twins],
            "controls": {control: _units(scores, control) for control in CONTROLS},
        }
        write_json(file, found)
        say(f"{each.name}: {name}")


def readouts(each: PictureSet, folder: Path, say: Callable[[str], None]) -> None:
    """Train read-outs of depth and poses on every candidate's features, and judge them on scenes held out."""
    work = _missing(each, folder, "readout")
    if not work:
        return
    scenes = each.open() if each.open is not None else []

    def judge(prior: Prior, controls: Sequence[str]) -> Any:
        result = vega3d.analysis.readout(
            prior,
            scenes,
            contexts=("views",),
            views=8,
            held_out=0.5,
            controls=controls,
            training=TRAINING,
            records=folder / "records",
            check=False,
        )
        return result.priors[0]

    made = candidates(each.size)
    for name, file in work.items():
        candidate = made[name]()
        twins = []
        for twin in candidate.twins:
            twins.append(judge(twin, READ_CONTROLS if candidate.prior is None and not twins else ()))
            say(f"{each.name}, read-out: {name}, twin")
        own = twins[0] if candidate.prior is None else judge(candidate.prior, READ_CONTROLS if name == "RIFE" else ())
        found: Found = {
            **_about(each, candidate, scenes),
            "units": "scenes held out",
            "trained": None if candidate.prior is None else _read(own, ITSELF),
            "twins": [_read(twin, ITSELF) for twin in twins],
            "controls": {control: _read(own, control) for control in own.controls if control != ITSELF},
        }
        write_json(file, found)
        say(f"{each.name}, read-out: {name}")


def read(folder: Path, what: str) -> dict[tuple[str, str], Found]:
    """What was found, by set and candidate."""
    found = {}
    for file in sorted(folder.glob(f"{what}-*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        found[values["set"], values["candidate"]] = values
    return found


def _missing(each: PictureSet, folder: Path, what: str) -> dict[str, Path]:
    names = ("RIFE", "small-world", "XFeat", "EfficientNet-lite0", "tiny-wan")
    files = {name: folder / f"{what}-{each.name}-{name}.json" for name in names}
    return {name: file for name, file in files.items() if not file.exists() and each.open is not None}


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
