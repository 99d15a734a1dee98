"""Correspondence: do the features of one place agree between views, beyond what controls reach?"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clips import clip_key
from ..errors import AnalysisError, UnknownNameError
from ..files import write_atomically
from ..priors.base import Prior
from ..priors.devices import usable
from ..record import library_version
from ..scenes.consistency import check_geometry
from ..scenes.scene import Scene
from ..warnings import Vega3dWarning
from .contexts import AnyPrior, Extractor, JudgedViews, contexts_of, in_context, joined, judged_views
from .controls import CONTROLS, Absent, another_view, feature_controls
from .partners import shared_views
from .protocols import Pairs, Protocol, protocol_of
from .results import FORMAT, ITSELF, CorrespondenceResult, PriorScores, Result, SceneScores
from .twin import name_of, untrained_twin

#: Told (what, done, total) as the work goes on.
Progress = Callable[[str, int, int], None]
VIEWS = 8
#: Scenes that are pictured, of each prior and context.
PICTURED = 2


class AnalysisWarning(Vega3dWarning):
    """A score is less sure than it looks."""


class SceneRecord(Result):
    """The file that one scene's figures of one prior are kept in."""

    key: str
    scores: SceneScores


@dataclass(frozen=True, eq=False)
class Judging:
    """How priors are judged.

    Attributes:
        protocol: see :mod:`~vega3d_plugin.analysis.protocols`.
        views: how many, or which.
        controls: names of controls.
        seed: of everything that is drawn.
        records: folder that each scene's figures are kept in, and found again when a run is resumed.
        store: folder of feature stores.
        pictures: folder for pictures of the first scenes.
        device: where priors run.
    """

    protocol: Protocol
    views: int | tuple[int, ...] = VIEWS
    controls: tuple[str, ...] = tuple(CONTROLS)
    seed: int = 0
    records: Path | None = None
    store: Path | None = None
    pictures: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def options(self) -> dict[str, Any]:
        """Plain values, of everything that changes a figure."""
        views = self.views if isinstance(self.views, int) else list(self.views)
        return {**self.protocol.options, "views": views, "controls": list(self.controls), "seed": self.seed}


def correspondence(
    prior: AnyPrior | Sequence[AnyPrior],
    scenes: Scene | Sequence[Scene],
    *,
    contexts: Sequence[str] | None = None,
    protocol: str | Protocol = "visible",
    views: int | Sequence[int] = VIEWS,
    controls: bool | Sequence[str] = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    store: str | Path | None = None,
    records: str | Path | None = None,
    pictures: str | Path | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> CorrespondenceResult:
    """Score how well a prior's features of one place agree between views.

    Args:
        prior: one or several: a name, settings, or a loaded prior.
        scenes: with depth, intrinsics and poses. Intervals are drawn over scenes, so give several.
        contexts: to judge each prior in (``frame``, ``views``, ``video``); default: all that it has; with protocol
            ``released`` its first, which is ``frame`` for generators.
        protocol: ``visible``, ``released``, ``probe3d``, or one with options of its own.
        views: how many views of each scene, spread evenly, or their indices.
        controls: all of them, none, or some by name (:data:`~vega3d_plugin.analysis.controls.CONTROLS`).
        seed: of the twin's weights, of noise, and of the choice of shuffled views.
        device: where priors run; default: CUDA where there is any.
        store: folder for features, one store in it for each prior and its settings.
        records: folder for each scene's figures: what is there is not computed again.
        pictures: folder for a picture of each of the first two scenes: scores, matches and features over its frames.
        check: whether depth and poses belong together, see
            :func:`~vega3d_plugin.scenes.consistency.check_geometry`; ``open_scene`` has done so already.
        progress: told what is done.

    Raises:
        AnalysisError: one view, views that share nothing, features that are not finite.
        SceneError: a scene lacks depth, intrinsics or poses, or they contradict each other.
        PriorError: a context that a prior has not, or one that cannot be loaded.
        UnknownNameError: an unknown protocol, control or prior.

    Warns:
        AnalysisWarning: there is one scene, so intervals are over its pairs, or a control is missing.
    """
    places = _scenes(scenes, check)
    judging = Judging(
        protocol_of(protocol),
        views if isinstance(views, int) else tuple(views),
        _controls(controls),
        seed,
        None if records is None else Path(records),
        None if store is None else Path(store),
        None if pictures is None else Path(pictures),
        _device(device),
    )
    work = [(each, context) for each in joined(prior) for context in _contexts(each, contexts, judging.protocol)]
    if not work:
        raise AnalysisError("There is no prior to judge. Give at least one, see `vega3d ls priors`.")
    tell = progress or (lambda what, done, total: None)
    found = []
    for number, (each, context) in enumerate(work):
        loaded = in_context(each, context)
        before = number * len(places)

        def told(what: str, done: int, before: int = before) -> None:
            tell(what, before + done, len(work) * len(places))

        found.append(judge(loaded, places, judging, context, told))
    if len(places) == 1:
        warnings.warn(
            f"There is one scene, {places[0].name!r}: intervals are drawn over its pairs of views, which share views, "
            "so they are too narrow. Give several scenes.",
            AnalysisWarning,
            stacklevel=2,
        )
    protocol = judging.protocol
    return CorrespondenceResult(
        protocol=protocol.name,
        options=judging.options,
        figures=dict(protocol.figures),
        headline=protocol.headline,
        library=library_version(),
        priors=tuple(found),
    )


def judge(
    prior: Prior,
    scenes: Sequence[Scene],
    judging: Judging,
    context: str,
    told: Callable[[str, int], None] = lambda what, done: None,
) -> PriorScores:
    """All figures of a loaded prior, scene by scene; see :func:`correspondence`."""
    extractor = Extractor(prior, judging.store, judging.device)
    twin = _Twin(prior, judging)
    scores = []
    for number, scene in enumerate(scenes):
        told(f"{name_of(prior)} ({context}) on {scene.name}", number)
        views = judged_views(prior, scene, judging.views)
        key = record_key(prior, context, views, judging)
        kept = _kept(judging.records, key)
        features = None
        if kept is None:
            features = extractor.maps(views)
            kept = judge_scene(prior, features, twin, views, judging)
            _keep(judging.records, key, kept)
        scores.append(kept)
        picture = _picture(judging, number, f"{scene.name}_{name_of(prior)}_{context}")
        if picture is not None:
            title = f"{name_of(prior)} ({context}) on {scene.name}"
            draw(picture, title, prior, extractor.maps(views) if features is None else features, views)
    told(f"{name_of(prior)} ({context})", len(scenes))
    return PriorScores(
        prior=name_of(prior),
        context=context,
        fingerprint=prior.fingerprint,
        settings=prior.settings.to_dict() if prior.settings else {},
        feature_dim=prior.feature_dim,
        scenes=tuple(scores),
    )


def judge_scene(prior: Prior, features: Tensor, twin: _Twin, views: JudgedViews, judging: Judging) -> SceneScores:
    """All figures of one scene: of the prior's features ``[V, C, h, w]``, and of its controls.

    Raises:
        AnalysisError: the views share nothing, or features are not finite.
    """
    scene, protocol = views.scene, judging.protocol
    grid = (features.shape[2], features.shape[3])
    pairs = protocol.pairs(scene, prior, grid)
    if not pairs.views:
        raise AnalysisError(
            f"The {len(scene)} judged views of scene {scene.name!r} ({scene.source}) share too little: no pair of them "
            f"shows enough of the same places (protocol {protocol.name!r}). Judge more views, or ones that overlap, "
            "and check poses and depth with `vega3d scene info`."
        )
    values, absent = {ITSELF: protocol.measure(pairs, features)}, {}
    others = feature_controls(prior, twin.make, views, features, judging.seed, lambda made: twin.maps(made, views))
    for control in judging.controls:
        if control == "views shuffled":
            values[control] = protocol.measure(pairs, features, another_view(len(scene), judging.seed))
        elif control == "same position":
            values[control] = protocol.measure(pairs, features, same_position=True)
        else:
            maps = others[control]()
            if isinstance(maps, Absent):
                absent[control] = maps.reason
            else:
                values[control] = protocol.measure(pairs, maps)
    return _scores(views, pairs, grid, prior.framing(scene.views[0].size).size, values, absent)


def draw(path: Path, title: str, prior: Prior, features: Tensor, views: JudgedViews) -> None:
    """Write a picture of two pairs of a scene's views: scores, matches and features over the frames."""
    from .charts import save
    from .overlays import pair_picture, shown_pairs

    scene = views.scene
    framing = prior.framing(scene.views[0].size)
    pairs = shown_pairs(shared_views(scene, framing, (features.shape[2], features.shape[3])))
    frames = views.clip[torch.tensor(views.places)]
    save(pair_picture(title, frames, features, pairs, framing, [view.name for view in scene.views]), path)


def record_key(prior: Prior, context: str, views: JudgedViews, judging: Judging) -> str:
    """Names a scene's figures by everything that they depend on, 32 hex digits."""
    parts = [FORMAT, prior.fingerprint, context, views.scene.fingerprint, clip_key(views.clip), list(views.places)]
    parts += [judging.protocol.name, judging.options, str(prior.dtype_on(judging.device))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class _Twin:
    """A prior's untrained twin, made when first needed."""

    def __init__(self, prior: Prior, judging: Judging) -> None:
        self.prior, self.judging = prior, judging
        self._made: Prior | Absent | None = None

    def make(self) -> Prior | Absent:
        if self._made is None:
            try:
                self._made = untrained_twin(self.prior, self.judging.seed)
            except AnalysisError as error:
                self._made = Absent(str(error))
        return self._made

    def maps(self, made: Prior, views: JudgedViews) -> Tensor:
        return Extractor(made, self.judging.store, self.judging.device).maps(views)


def _scores(
    views: JudgedViews,
    pairs: Pairs,
    grid: tuple[int, int],
    seen: tuple[int, int],
    values: Mapping[str, Mapping[str, Sequence[float]]],
    absent: Mapping[str, str],
) -> SceneScores:
    scene = views.scene
    return SceneScores(
        scene=scene.name,
        source=scene.source,
        fingerprint=scene.fingerprint,
        views=tuple(view.name for view in scene.views),
        grid=grid,
        seen=seen,
        pairs=tuple(pairs.views),
        angles=tuple(round(angle, 3) for angle in pairs.angles),
        shared=tuple(pairs.shared),
        left_out=pairs.left_out,
        repeated=views.repeated,
        values={
            control: {figure: tuple(_plain(value) for value in found) for figure, found in by.items()}
            for control, by in values.items()
        },
        absent=dict(absent),
    )


def _plain(value: float) -> float | None:
    return round(value, 7) if math.isfinite(value) else None


# Records


def _picture(judging: Judging, number: int, name: str) -> Path | None:
    """Where the picture of a scene goes; None where none is wanted, or it is there."""
    if judging.pictures is None or number >= PICTURED:
        return None
    safe = re.sub(r"[^\w.-]+", "-", name)
    path = judging.pictures / f"{safe}.png"
    return None if path.is_file() else path


def _record(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _kept(folder: Path | None, key: str) -> SceneScores | None:
    """Figures that an earlier run left; a file that cannot be read is told, and computed again."""
    if folder is None or not _record(folder, key).exists():
        return None
    try:
        record = SceneRecord.read(_record(folder, key))
    except AnalysisError as error:
        warnings.warn(f"{error} It is computed again.", AnalysisWarning, stacklevel=4)
        return None
    return record.scores if record.key == key else None


def _keep(folder: Path | None, key: str, scores: SceneScores) -> None:
    if folder is None:
        return
    text = SceneRecord(key=key, scores=scores).to_json()
    write_atomically(_record(folder, key), lambda path: path.write_text(text, encoding="utf-8"))


# What is asked for


def _scenes(scenes: Scene | Sequence[Scene], check: bool) -> list[Scene]:
    places = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if not places:
        raise AnalysisError("There is no scene to judge on. Give at least one with depth, intrinsics and poses.")
    for place in places:
        place.require("depth", "intrinsics", "pose")
        if check:
            check_geometry(place)
    return places


def _controls(controls: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(controls, bool):
        return tuple(CONTROLS) if controls else ()
    for control in controls:
        if control not in CONTROLS:
            raise UnknownNameError("control", control, CONTROLS)
    return tuple(name for name in CONTROLS if name in controls)


def _contexts(prior: AnyPrior, wanted: Sequence[str] | None, protocol: Protocol) -> tuple[str, ...]:
    known = contexts_of(prior, wanted)
    return known[:1] if wanted is None and protocol.name == "released" else known


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable(str(device))
