"""Read-outs: what a shallow head reads of space from frozen features, beyond what it reads from controls."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contracts.errors import AnalysisError, UnknownNameError
from ...contracts.priors import Prior
from ...priors.frozen.resizing import resize_framed
from ...scenes.scene import Scene
from ...storage.versions import library_version
from ..contexts import AnyPrior, contexts_of, in_context, joined
from ..controls import Absent
from ..records import ITSELF
from ..scoring import AnalysisWarning, KeptRecord, Progress, checked_device, checked_scenes, keep, kept
from ..twin import name_of
from .heads import SIZES, Size
from .judging import CLIPS, FIGURES, HIGHER, judge_depth, judge_head, predicted_depth, read_depth
from .pictures import encode_depth, encode_frame
from .records import CONTROLS, FEW, FORMAT, DepthExample, PriorReadout, SceneFigures
from .results import ReadoutResult
from .sampling import VIEWS as CLIP_VIEWS
from .sampling import Split, split_scenes
from .sources import Sampling, ShownScenes
from .training import FULL_DEPTH_LR, FULL_LR, FeatureScene, Standard, TrainingSettings, train_depth_head, train_head
from .truth import SceneTruth, check_distinct, scene_truth

#: Views of each scene that a prior is shown.
VIEWS = 12
#: Tokens of a view that a small read-out is given at most.
MOST_TOKENS = 400
#: Longer side of what the full head predicts, pixels, as published.
FULL_SIDE = 518
#: Held-out scenes of which a view is kept to look at.
EXAMPLES = 6


class ControlFigures(KeptRecord):
    """The file that one control's figures are kept in, and found again when a run is resumed.

    Attributes:
        grid: (h, w) of the map that was read out.
        scenes: by the scene's fingerprint.
        predicted: depth maps of the examples, as :class:`~.results.DepthExample` has them.
    """

    grid: tuple[int, int]
    scenes: dict[str, dict[str, float]]
    predicted: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Experiment:
    """How priors are read out.

    Attributes:
        training: of the heads.
        views: of each scene that a prior is shown.
        share: of the scenes that are held out.
        controls: by name.
        clips: of each scene that a read-out is judged on.
        records: folder that figures are kept in.
        store: folder of feature stores.
        device: where priors and heads run.
        tell: told (what, done, total).
    """

    training: TrainingSettings
    views: int = VIEWS
    share: float = 0.25
    controls: tuple[str, ...] = tuple(CONTROLS)
    clips: int = CLIPS
    records: Path | None = None
    store: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tell: Progress = lambda what, done, total: None

    @property
    def is_small(self) -> bool:
        """Whether the head is ours, not the published one."""
        return self.training.size == "small"

    @property
    def options(self) -> dict[str, Any]:
        """Plain values, of everything that changes a figure."""
        chosen = {"views": self.views, "held_out": self.share, "clips": self.clips, "controls": list(self.controls)}
        return {**self.training.to_dict(), **chosen}


def readout(
    prior: AnyPrior | Sequence[AnyPrior],
    scenes: Sequence[Scene],
    *,
    contexts: Sequence[str] | None = None,
    size: Size = "small",
    steps: int | None = None,
    views: int = VIEWS,
    held_out: float = 0.25,
    controls: bool | Sequence[str] = True,
    seed: int = 0,
    training: TrainingSettings | None = None,
    device: str | torch.device | None = None,
    store: str | Path | None = None,
    records: str | Path | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> ReadoutResult:
    """Train shallow heads on frozen features, and judge them on scenes that they were not trained on.

    Two heads for each prior and each control. One reads 4 views: their 3D points in the first camera, their depth and
    their relative poses (VidFM3D; losses and metrics exactly theirs). The other is probe3d's linear head: the depth
    of one view in metres.

    Args:
        prior: one or several: a name, settings, or a loaded prior.
        scenes: at least four, all different, with depth, intrinsics and poses; some dozens, better hundreds.
        contexts: to judge each prior in (``frame``, ``views``, ``video``); default: all that it has.
        size: ``small``: minutes on one CPU core; ``full``: VidFM3D's head of 384 M parameters, for a GPU.
        steps: of both trainings; default 600 for 4 views and 300 for the linear head.
        views: of each scene that the prior is shown, spread evenly.
        held_out: share of the scenes to judge on; at least two are.
        controls: all of them, none, or some by name (:data:`~vega3d_plugin.analysis.readouts.results.CONTROLS`).
        seed: of the split, the heads' weights, the clips, the twin's weights and the noise.
        training: all settings of the training, in place of ``size``, ``steps`` and ``seed``.
        device: where priors and heads run; default: CUDA where there is any.
        store: folder for features, one store in it for each prior and its settings.
        records: folder for figures: what is there is not trained again.
        check: compare depth between views first, see ``scenes.check_geometry``.
        progress: told what is done.

    Raises:
        AnalysisError: too few scenes or views, one scene twice, features or losses that are not finite.
        SceneError: a scene lacks depth, intrinsics or poses, or they contradict each other.
        PriorError: a context that a prior has not, or one that cannot be loaded.
        UnknownNameError: an unknown control, size or prior.

    Warns:
        AnalysisWarning: few scenes are held out, so that intervals say little.
    """
    places = checked_scenes(scenes, check)
    experiment = Experiment(
        training or training_settings(size, steps, seed),
        views,
        held_out,
        _controls(controls),
        records=None if records is None else Path(records),
        store=None if store is None else Path(store),
        device=checked_device(device),
        tell=progress or (lambda what, done, total: None),
    )
    _check_scenes(places, views)
    split = split_scenes([place.fingerprint for place in places], held_out, experiment.training.seed)
    work = [(each, context) for each in joined(prior) for context in contexts_of(each, contexts)]
    if not work:
        raise AnalysisError("There is no prior to read out. Give at least one, see `vega3d ls priors`.")
    found = tuple(read_prior(in_context(each, context), context, places, split, experiment) for each, context in work)
    if len(split.held_out) < FEW:
        warnings.warn(
            f"{len(split.held_out)} scenes are held out: intervals over so few say little. Give more scenes.",
            AnalysisWarning,
            stacklevel=2,
        )
    return ReadoutResult(
        options=experiment.options,
        figures=dict(FIGURES),
        higher=HIGHER,
        library=library_version(),
        priors=found,
        notes=_notes(places),
    )


def training_settings(size: str = "small", steps: int | None = None, seed: int = 0) -> TrainingSettings:
    """Settings by what users choose.

    Raises:
        UnknownNameError: another size than ``small`` and ``full``.
        AnalysisError: no steps.
    """
    if size not in SIZES:
        raise UnknownNameError("size of a read-out", size, SIZES)
    settings = TrainingSettings(size=size, seed=seed)
    if size == "full":
        settings = replace(settings, lr=FULL_LR, depth_lr=FULL_DEPTH_LR)
    return settings if steps is None else replace(settings, steps=steps, depth_steps=steps)


def read_prior(
    prior: Prior, context: str, scenes: Sequence[Scene], split: Split, experiment: Experiment
) -> PriorReadout:
    """All figures of a loaded prior and its controls; see :func:`readout`."""
    label = f"{name_of(prior)} ({context})"
    most = MOST_TOKENS if experiment.is_small else None
    shown = ShownScenes(
        prior,
        scenes,
        split,
        Sampling(experiment.views, most, experiment.training.seed),
        experiment.store,
        experiment.device,
        lambda done: experiment.tell(f"{label}: features", done, len(scenes)),
    )
    truths = _Truths(shown, experiment)
    found: dict[str, ControlFigures] = {}
    absent: dict[str, str] = {}
    for control in (ITSELF, *experiment.controls):
        key = _key(shown, context, control, experiment)
        figures = kept(experiment.records, key, ControlFigures)
        if figures is None:
            maps = shown.features(control)
            if isinstance(maps, Absent):
                absent[control] = maps.reason
                continue
            figures = _read_control(f"{label}, {control}", key, maps, truths, split, experiment)
            keep(experiment.records, figures)
        found[control] = figures
    first = shown.views(0).scene
    return PriorReadout(
        prior=name_of(prior),
        context=context,
        fingerprint=prior.fingerprint,
        settings=prior.settings.to_dict() if prior.settings else {},
        feature_dim=prior.feature_dim,
        grid=found[ITSELF].grid,
        seen=prior.framing(first.views[0].size).size,
        held_out=tuple(_scene_figures(shown.views(i).scene, found) for i in split.held_out),
        training=tuple(_scene_figures(shown.views(i).scene, found) for i in split.training),
        absent=absent,
        examples=_examples(truths, found[ITSELF].grid, found),
    )


class _Truths:
    """What is true of all scenes on the grids that are predicted; the same for a prior and its controls."""

    def __init__(self, shown: ShownScenes, experiment: Experiment) -> None:
        self.shown, self.is_small = shown, experiment.is_small
        self.metric = all(scene.metric for scene in shown.scenes)
        self._known: dict[tuple[int, tuple[int, int]], SceneTruth] = {}

    def on(self, index: int, grid: tuple[int, int]) -> SceneTruth:
        if (index, grid) not in self._known:
            scene = self.shown.views(index).scene
            self._known[index, grid] = truth = scene_truth(scene, self.shown.prior.framing, grid)
            if len(truth.usable) < CLIP_VIEWS:
                raise AnalysisError(
                    f"Scene {scene.name!r} ({scene.source}): {len(truth.usable)} of its {len(scene)} views have depth "
                    f"where the prior looks, and a read-out takes {CLIP_VIEWS} at once. Give another scene."
                )
        return self._known[index, grid]

    def predicted_size(self, index: int, grid: tuple[int, int]) -> tuple[int, int]:
        """What the first head predicts: tokens, or for the published head pixels."""
        if self.is_small:
            return grid
        seen = self.shown.prior.framing(self.shown.views(index).scene.views[0].size).size
        scale = min(1.0, FULL_SIDE / max(seen))
        return max(1, round(seen[0] * scale)), max(1, round(seen[1] * scale))

    def scene(self, index: int, maps: Tensor) -> FeatureScene:
        grid = (maps.shape[-2], maps.shape[-1])
        fine = self.on(index, _finer(grid))
        return FeatureScene(maps, self.on(index, self.predicted_size(index, grid)), fine)


def _read_control(
    what: str, key: str, maps: Sequence[Tensor], truths: _Truths, split: Split, experiment: Experiment
) -> ControlFigures:
    """Train both heads on one kind of features, and judge them on every scene."""
    if experiment.is_small:
        standard = Standard.of([maps[i] for i in split.training])
        maps = [standard(each) for each in maps]
    scenes = [truths.scene(index, each) for index, each in enumerate(maps)]
    training, device = experiment.training, experiment.device

    def tick(part: str, total: int) -> Callable[[int], None]:
        return lambda step: experiment.tell(f"{what}: {part}", step, total)

    seen = [scenes[i] for i in split.training]
    head = train_head(seen, training, device, tick("4 views", training.steps))
    linear = None
    if truths.metric:
        linear = train_depth_head(seen, training, device, tick("depth", training.depth_steps))
    figures, predicted = {}, []
    for index, scene in enumerate(scenes):
        values = judge_head(head, scene, training, device, experiment.clips)
        if linear is not None:
            values |= judge_depth(*predicted_depth(linear, scene, device))
        figures[scene.truth.fingerprint] = {name: round(value, 6) for name, value in values.items()}
        if linear is not None and index in split.held_out[:EXAMPLES]:
            middle = [_middle(scene.truth)]
            predicted.append(encode_depth(read_depth(linear, scene, middle, device)[0]))
    grid = (maps[0].shape[-2], maps[0].shape[-1])
    return ControlFigures(key=key, grid=grid, scenes=figures, predicted=tuple(predicted))


def _examples(truths: _Truths, grid: tuple[int, int], found: dict[str, ControlFigures]) -> tuple[DepthExample, ...]:
    """One view of each of the first held-out scenes."""
    shown, fine = truths.shown, _finer(grid)
    if not truths.metric:
        return ()
    examples = []
    for number, index in enumerate(shown.split.held_out[:EXAMPLES]):
        truth, views = truths.on(index, fine), shown.views(index)
        middle = _middle(truths.on(index, truths.predicted_size(index, grid)))
        view = views.scene.views[middle]
        frame = resize_framed(views.clip[views.places[middle]][None], shown.prior.framing(view.size))[0]
        examples.append(
            DepthExample(
                scene=views.scene.name,
                view=view.name,
                size=fine,
                frame=encode_frame(frame),
                true=encode_depth(truth.depth[middle].float()),
                predicted={control: figures.predicted[number] for control, figures in found.items()},
            )
        )
    return tuple(examples)


def _middle(truth: SceneTruth) -> int:
    """The view that is shown of a scene."""
    return truth.usable[len(truth.usable) // 2]


def _scene_figures(scene: Scene, found: dict[str, ControlFigures]) -> SceneFigures:
    values = {control: figures.scenes[scene.fingerprint] for control, figures in found.items()}
    return SceneFigures(scene=scene.name, source=scene.source, fingerprint=scene.fingerprint, values=values)


def _finer(grid: tuple[int, int]) -> tuple[int, int]:
    """What probe3d's linear head predicts: four times the grid of the features."""
    return 4 * grid[0], 4 * grid[1]


def _notes(scenes: Sequence[Scene]) -> tuple[str, ...]:
    vague = [scene.name for scene in scenes if not scene.metric]
    if not vague:
        return ()
    names = f"{', '.join(vague[:3])}{', ...' if len(vague) > 3 else ''}"
    return (
        f"{len(vague)} scenes ({names}) are known up to their scale only: the linear head, which reads metres, was not "
        "trained.",
    )


def _key(shown: ShownScenes, context: str, control: str, experiment: Experiment) -> str:
    contents = [shown.views(i).key for i in range(len(shown.scenes))]
    options = {name: value for name, value in experiment.options.items() if name != "controls"}
    parts = [FORMAT, shown.prior.fingerprint, context, control, contents, options]
    parts.append(str(shown.prior.dtype_on(experiment.device)))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


# What is asked for


def _check_scenes(scenes: Sequence[Scene], views: int) -> None:
    for scene in scenes:
        if min(views, len(scene)) < CLIP_VIEWS:
            raise AnalysisError(
                f"Scene {scene.name!r} ({scene.source}): {min(views, len(scene))} views would be shown, and a read-out "
                f"takes {CLIP_VIEWS} at once. Give scenes of more views."
            )
    check_distinct(scenes)


def _controls(controls: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(controls, bool):
        return tuple(CONTROLS) if controls else ()
    for control in controls:
        if control not in CONTROLS:
            raise UnknownNameError("control of a read-out", control, CONTROLS)
    return tuple(name for name in CONTROLS if name in controls)
