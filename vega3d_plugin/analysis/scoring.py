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
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..contracts.errors import AnalysisError, UnknownNameError, Vega3dWarning
from ..contracts.priors import Prior
from ..priors.frozen.devices import usable
from ..scenes.consistency import check_geometry
from ..scenes.scene import Scene
from ..storage.versions import library_version
from ..storage.writing import write_atomically
from .contexts import AnyPrior, Extractor, JudgedViews, contexts_of, in_context, joined, judged_views
from .controls import CONTROLS, Absent, another_view, feature_controls
from .partners import shared_views
from .protocols import Pairs, Protocol, protocol_of
from .records import FORMAT, ITSELF, PriorScores, Result, SceneScores
from .results import CorrespondenceResult
from .twin import name_of, untrained_twin

#: Told (what, done, total) as the work goes on.
Progress = Callable[[str, int, int], None]
VIEWS = 8
#: Scenes that are pictured, of each prior and context.
PICTURED = 2


class AnalysisWarning(Vega3dWarning):
    """A score is less sure than it looks."""


class KeptRecord(Result):
    """A file that figures are kept in. Attributes: ``key`` names what they depend on."""

    key: str


class SceneRecord(KeptRecord):
    """One scene's figures of one prior."""

    scores: SceneScores


K = TypeVar("K", bound=KeptRecord)


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
    places = checked_scenes(scenes, check)
    judging = Judging(
        protocol_of(protocol),
        views if isinstance(views, int) else tuple(views),
        _controls(controls),
        seed,
        None if records is None else Path(records),
        None if store is None else Path(store),
        None if pictures is None else Path(pictures),
        checked_device(device),
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
    twin = Twin(prior, judging, lambda made, views: Extractor(made, judging.store, judging.device).maps(views))
    scores = []
    for number, scene in enumerate(scenes):
        told(f"{name_of(prior)} ({context}) on {scene.name}", number)
        views = judged_views(prior, scene, judging.views)
        key = record_key(prior, context, views, judging)
        record, features = kept(judging.records, key, SceneRecord), None
        if record is None:
            features = extractor.maps(views)
            record = SceneRecord(key=key, scores=judge_scene(prior, features, twin, views, judging))
            keep(judging.records, record)
        scores.append(record.scores)
        # Of other settings there are other pictures.
        picture = _picture(judging, number, f"{scene.name}_{name_of(prior)}_{context}_{prior.fingerprint[:8]}")
        # One that is there shows what an earlier run found, so it may stay where nothing was computed.
        if picture is not None and (features is not None or not picture.is_file()):
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


def judge_scene(prior: Prior, features: Tensor, twin: Twin, views: JudgedViews, judging: Judging) -> SceneScores:
    """All figures of one scene: of the prior's features ``[V, C, h, w]``, and of its controls.

    Raises:
        AnalysisError: the views share nothing, or features are not finite.
    """
    scene, protocol = views.scene, judging.protocol
    grid = (features.shape[2], features.shape[3])
    pairs = protocol.judged_pairs(scene, prior, grid)
    values, absent = measured(prior, features, pairs, twin, views, judging)
    return scene_scores(views, pairs, grid, prior.framing(scene.views[0].size).size, values, absent)


def measured(
    prior: Prior, features: Tensor, pairs: Pairs, twin: Twin, views: JudgedViews, judging: Judging
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Figures of a prior's features and of each control, by name; and why there are not all of them."""
    protocol, scene = judging.protocol, views.scene
    values: dict[str, dict[str, list[float]]] = {ITSELF: protocol.measure(pairs, features)}
    absent: dict[str, str] = {}
    others = feature_controls(prior, twin.make, views, features, judging.seed, lambda it: twin.extract(it, views))
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
    return values, absent


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
    parts = [FORMAT, prior.fingerprint, context, views.key]
    parts += [judging.protocol.name, judging.options, str(prior.dtype_on(judging.device))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Twin:
    """A prior's untrained twin, made when first needed.

    Args:
        prior: whose.
        judging: says the seed.
        extract: a twin's features of judged views.
    """

    def __init__(self, prior: Prior, judging: Judging, extract: Callable[[Prior, JudgedViews], Tensor]) -> None:
        self.prior, self.seed, self.extract = prior, judging.seed, extract
        self._made: Prior | Absent | None = None

    def make(self) -> Prior | Absent:
        """It, or why there is none."""
        if self._made is None:
            try:
                self._made = untrained_twin(self.prior, self.seed)
            except AnalysisError as error:
                self._made = Absent(str(error))
        return self._made


def scene_scores(
    views: JudgedViews,
    pairs: Pairs,
    grid: tuple[int, int],
    seen: tuple[int, int],
    values: Mapping[str, Mapping[str, Sequence[float]]],
    absent: Mapping[str, str],
) -> SceneScores:
    """What is kept of a scene."""
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
            control: {figure: tuple(plain(value) for value in found) for figure, found in by.items()}
            for control, by in values.items()
        },
        absent=dict(absent),
    )


def plain(value: float) -> float | None:
    """A number as JSON has it: seven digits behind the point, None where there is none."""
    return round(value, 7) if math.isfinite(value) else None


# Records


def _picture(judging: Judging, number: int, name: str) -> Path | None:
    """Where the picture of a scene goes; None where none is wanted."""
    if judging.pictures is None or number >= PICTURED:
        return None
    safe = re.sub(r"[^\w.-]+", "-", name)
    return judging.pictures / f"{safe}.png"


def _record(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def kept(folder: Path | None, key: str, kind: type[K]) -> K | None:
    """What an earlier run left under a key; a file that cannot be read is told, and made again."""
    if folder is None or not _record(folder, key).exists():
        return None
    try:
        record = kind.read(_record(folder, key))
    except AnalysisError as error:
        warnings.warn(f"{error} It is computed again.", AnalysisWarning, stacklevel=5)
        return None
    return record if record.key == key else None


def keep(folder: Path | None, record: KeptRecord) -> None:
    """Write what was found, whole or not at all."""
    if folder is not None:
        text = record.to_json()
        write_atomically(_record(folder, record.key), lambda path: path.write_text(text, encoding="utf-8"))


# What is asked for


def checked_scenes(scenes: Scene | Sequence[Scene], check: bool) -> list[Scene]:
    """One scene or several as several, each with what judging needs.

    Raises:
        AnalysisError: none.
        SceneError: one lacks depth, intrinsics or poses, or (``check``) they contradict each other.
    """
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


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; CUDA where there is any, by default. Raises :class:`PriorError` where there is none."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable(str(device))
