"""The whole grid of timesteps and taps: all taps of one timestep cost one forward."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from ..contracts.errors import AnalysisError
from ..contracts.priors import Prior
from ..contracts.tables import PRIORS
from ..priors.diffusion.prior import DiffusionPrior
from ..priors.frozen.prior import FrozenPrior
from ..priors.load import load_prior
from ..scenes.scene import Scene
from ..storage.versions import library_version
from .adjacent import check_finite
from .charts import save
from .contexts import (
    AnyPrior,
    JudgedViews,
    contexts_of,
    judged_views,
    per_view,
    same_weights,
    settings_of,
    with_changes,
)
from .protocols import Pairs, Protocol, protocol_of
from .records import FORMAT, ITSELF, SceneScores
from .scoring import (
    VIEWS,
    Judging,
    KeptRecord,
    Progress,
    Twin,
    checked_device,
    checked_scenes,
    keep,
    kept,
    measured,
    plain,
    scene_scores,
)
from .sweep_records import Cell, SweepScores
from .tables import sweep_chart, sweep_findings, sweep_table

if TYPE_CHECKING:
    from PIL.Image import Image


class Readout(TypingProtocol):
    """What else is measured at each timestep and tap, such as :class:`~.readouts.in_sweep.DepthReadout`."""

    @property
    def figures(self) -> Mapping[str, str]:
        """What each of its figures is, by name; of all of them more is better."""

    def __call__(self, maps: Sequence[Tensor], views: Sequence[JudgedViews], prior: Prior) -> Mapping[str, float]:
        """Figures by name, of the maps ``[V, C, h, w]`` of the judged views of all scenes; the prior says what it
        sees of them."""


#: Bytes of features that are held at once.
MOST_BYTES = 2 << 30
#: Controls that do not depend on tap and timestep, or are made at the best ones.
CONTROLS = ("views shuffled", "same position", "untrained twin", "VAE alone", "pixels", "position only", "random")


class SweepResult(SweepScores):
    """What :func:`vega3d.analysis.sweep` found.

    Attributes:
        kind, format: of the file.
        prior, context, settings: what was swept; the settings are those of the last tap.
        protocol, options, figures, headline: as in a correspondence result.
        library: version that wrote it.
        timesteps, taps: the grid.
        cells: every timestep and tap.
        scenes: the pairs of views that were judged, and controls at the best timestep and tap.
        readouts: what each figure of the read-out is; empty where none was asked for.
        forwards: how often the prior was run on each scene, for each timestep.
    """

    def table(self) -> str:
        """Every figure as a grid of taps and timesteps, then what may be said of it, as plain text."""

        return sweep_table(self)

    def findings(self) -> list[str]:
        """What may be said of it, one sentence each."""

        return sweep_findings(self)

    def plot(self, path: str | Path | None = None) -> Image:
        """Heat maps of all figures as a picture; written to ``path`` (PNG) if given."""

        picture = sweep_chart(self)
        return picture if path is None else save(picture, path)


class SweptScene(KeptRecord):
    """One scene's figures at one timestep.

    Attributes:
        outline: the pairs of views at the first tap, with its figures.
        values: by tap and figure, a value for each of these pairs.
    """

    outline: SceneScores
    values: dict[int, dict[str, tuple[float | None, ...]]]


def sweep(
    prior: AnyPrior,
    scenes: Scene | Sequence[Scene],
    *,
    timesteps: Sequence[int] | None = None,
    taps: Sequence[int] | None = None,
    context: str | None = None,
    protocol: str | Protocol = "visible",
    views: int | Sequence[int] = VIEWS,
    seed: int = 0,
    device: str | torch.device | None = None,
    records: str | Path | None = None,
    readout: Readout | None = None,
    most_bytes: int = MOST_BYTES,
    check: bool = True,
    progress: Progress | None = None,
) -> SweepResult:
    """Score a prior at every timestep and tap of a grid.

    Args:
        prior: a name, settings, or a loaded prior, which is loaded again.
        scenes: with depth, intrinsics and poses.
        timesteps: noise levels; default: the prior's own alone. A prior that adds no noise has none.
        taps: blocks, negative ones from the end; default: all of them.
        context: ``frame``, ``views`` or ``video``; default: the settings' own.
        protocol, views, seed, device, check, progress: as for :func:`~.scoring.correspondence`.
        records: folder for each timestep's and scene's figures: what is there is not computed again.
        readout: what else to measure of each timestep and tap; then features are made anew even where figures are
            kept.
        most_bytes: of features that are held at once; more taps than fit into it cost further forwards.

    Raises:
        AnalysisError: a prior without taps, timesteps for one that has none, or as for ``correspondence``.
        PriorError: a tap or timestep that the prior has not, or one that was changed since it was loaded.
    """
    places = checked_scenes(scenes, check)
    rule = protocol_of(protocol)
    swept = _Swept.load(prior, timesteps, taps, context)
    judging = Judging(
        rule,
        views if isinstance(views, int) else tuple(views),
        CONTROLS,
        seed,
        None if records is None else Path(records),
        device=checked_device(device),
    )
    work = _Work(swept, places, judging, readout, most_bytes)
    settings = swept.prior.settings
    cells = work.cells(progress or (lambda what, done, total: None))
    made = SweepResult(
        prior=settings.name,
        context=settings.context,
        settings=settings.to_dict(),
        protocol=rule.name,
        options=judging.options,
        figures=dict(rule.figures),
        headline=rule.headline,
        library=library_version(),
        timesteps=swept.timesteps,
        taps=swept.taps,
        cells=cells,
        scenes=tuple(work.outlines),
        readouts={} if readout is None else dict(readout.figures),
        forwards=work.forwards,
    )
    return made.model_copy(update={"scenes": work.controls(made.best())})


@dataclass(frozen=True, eq=False)
class _Swept:
    """A prior that ends at the last tap, and the grid.

    ``reload`` loads it at another tap, for those whose taps cannot come from one run.
    """

    prior: FrozenPrior
    timesteps: tuple[int | None, ...]
    taps: tuple[int, ...]
    reload: Callable[[int], FrozenPrior]

    @classmethod
    def load(
        cls, prior: AnyPrior, timesteps: Sequence[int] | None, taps: Sequence[int] | None, context: str | None
    ) -> _Swept:
        settings = settings_of(prior)
        names = PRIORS
        spec = names.get(settings.name) if settings is not None and settings.name in names.names() else None
        if settings is None or spec is None or not spec.taps:
            raise AnalysisError(
                f"Prior {settings.name if settings else type(prior).__name__!r} has no taps to sweep. "
                "`vega3d ls priors` shows which have; `correspondence` judges it as it is."
            )
        if context is not None:
            settings = with_changes(settings, context=contexts_of(settings, [context])[0])

        def at(tap: int) -> FrozenPrior:
            loaded = load_prior(with_changes(settings, tap=tap, compile=False))
            if not isinstance(loaded, FrozenPrior):
                raise AnalysisError(f"Prior {settings.name!r} has no taps to sweep: it is a {type(loaded).__name__}.")
            return loaded

        wanted = list(dict.fromkeys(taps)) if taps is not None else []
        # Only the whole model knows how many blocks there are.
        loaded = at(max(wanted) if wanted and min(wanted) >= 0 else -1)
        last = loaded.settings.tap
        if last is None:
            raise AnalysisError(f"Prior {settings.name!r} has no taps to sweep.")
        found = tuple(tap + last + 1 if tap < 0 else tap for tap in wanted) or tuple(range(last + 1))
        if not all(0 <= tap <= last for tap in found):
            raise AnalysisError(f"Prior {settings.name!r} has taps 0 to {last}, asked for {list(wanted)}.")
        if isinstance(prior, Prior):
            own = prior.settings
            assert own is not None
            same_weights(prior, load_prior(own))
        return cls(loaded, _timesteps(loaded, timesteps), tuple(dict.fromkeys(found)), at)


def _timesteps(prior: FrozenPrior, wanted: Sequence[int] | None) -> tuple[int | None, ...]:
    if isinstance(prior, DiffusionPrior):
        return tuple(dict.fromkeys(wanted)) if wanted else (prior.settings.timestep,)
    if wanted:
        raise AnalysisError(
            f"Prior {prior.settings.name!r} adds no noise, so it has no timesteps, asked for {list(wanted)}. "
            "Sweep its taps alone."
        )
    return (None,)


class _Work:
    """The grid on all scenes."""

    def __init__(
        self, swept: _Swept, scenes: Sequence[Scene], judging: Judging, readout: Readout | None, most_bytes: int
    ) -> None:
        self.swept, self.judging, self.readout, self.most_bytes = swept, judging, readout, most_bytes
        self.views = [judged_views(swept.prior, scene, judging.views) for scene in scenes]
        self.fingerprint = swept.prior.fingerprint if judging.records else ""
        self.forwards = 1
        self.outlines: list[SceneScores] = []
        self._pairs: dict[tuple[int, tuple[int, int]], Pairs] = {}
        self._latents: dict[str, Tensor] = {}

    def cells(self, tell: Progress) -> tuple[Cell, ...]:
        """All figures of the grid."""
        name, total = self.swept.prior.settings.name, len(self.swept.timesteps) * len(self.views)
        cells = []
        for number, timestep in enumerate(self.swept.timesteps):
            records, maps = [], {tap: list[Tensor]() for tap in self.swept.taps}
            for index, views in enumerate(self.views):
                at = "" if timestep is None else f" at timestep {timestep}"
                tell(f"{name}{at} on {views.scene.name}", number * len(self.views) + index, total)
                records.append(self._scene(index, timestep, maps))
            self.outlines = [record.outline for record in records]
            for tap in self.swept.taps:
                read = {} if self.readout is None else dict(self.readout(maps[tap], self.views, self.swept.prior))
                values = tuple(record.values[tap] for record in records)
                cells.append(Cell(timestep=timestep, tap=tap, values=values, readout=read))
        tell(name, total, total)
        return tuple(cells)

    def controls(self, best: Cell) -> tuple[SceneScores, ...]:
        """The judged pairs of each scene, with the figures of the best timestep and tap and of its controls."""
        self._set(best.timestep)
        prior = self._prior_for(best.tap)
        twin = Twin(prior, self.judging, lambda made, views: self._maps(made, views, [best.tap])[best.tap])
        found = []
        for index, (views, outline) in enumerate(zip(self.views, self.outlines, strict=True)):
            features = self._maps(prior, views, [best.tap])[best.tap]
            pairs = self._pairs_of(index, features)
            values, absent = measured(prior, features, pairs, twin, views, self.judging)
            aligned = {control: _aligned(by, pairs, outline) for control, by in values.items()}
            found.append(outline.model_copy(update={"values": aligned, "absent": absent}))
        return tuple(found)

    def _scene(self, index: int, timestep: int | None, maps: dict[int, list[Tensor]]) -> SweptScene:
        """One scene at one timestep; for a read-out each tap's features are added to ``maps``."""
        views, key = self.views[index], self._key(index, timestep)
        record = kept(self.judging.records, key, SweptScene) if self.readout is None else None
        if record is not None:
            return record
        self._set(timestep)
        outline: SceneScores | None = None
        values = {}
        for tap, features in self._taps(views):
            pairs = self._pairs_of(index, features)
            found = self.judging.protocol.measure(pairs, features)
            if outline is None:
                grid = (features.shape[2], features.shape[3])
                seen = self.swept.prior.framing(views.scene.views[0].size).size
                outline = scene_scores(views, pairs, grid, seen, {ITSELF: found}, {})
            values[tap] = _aligned(found, pairs, outline)
            if self.readout is not None:
                maps[tap].append(features.cpu())
        assert outline is not None  # there is at least one tap
        record = SweptScene(key=key, outline=outline, values=values)
        keep(self.judging.records, record)
        return record

    def _set(self, timestep: int | None) -> None:
        prior = self.swept.prior
        if timestep is not None and isinstance(prior, DiffusionPrior) and prior.settings.timestep != timestep:
            prior.set_timestep(timestep)

    def _taps(self, views: JudgedViews) -> Iterator[tuple[int, Tensor]]:
        """Maps of every tap, as many at once as fit."""
        prior, taps = self.swept.prior, list(self.swept.taps)
        # Stages of a UNet differ in size and channels, so each has a run of its own.
        at_once = max(1, self.most_bytes // _bytes(prior, len(views.clip))) if prior.taps() else 1
        chunks = [taps[start : start + at_once] for start in range(0, len(taps), at_once)]
        self.forwards = max(self.forwards, len(chunks))
        for chunk in chunks:
            yield from self._maps(self._prior_for(chunk[0]), views, chunk).items()

    def _prior_for(self, tap: int) -> FrozenPrior:
        """The one that gives a tap: the swept one, or where it gives its last tap alone one that ends there."""
        swept = self.swept.prior
        if swept.taps() or swept.settings.tap == tap:
            return swept
        prior = self.swept.reload(tap)
        if isinstance(prior, DiffusionPrior):
            prior.set_timestep(swept.settings.timestep)
        return prior

    def _maps(self, prior: Prior, views: JudgedViews, taps: Sequence[int]) -> dict[int, Tensor]:
        """One map for each judged view, by tap."""
        assert isinstance(prior, FrozenPrior)  # as is its twin
        clip = views.clip.to(self.judging.device)
        if prior.taps():
            found = prior.at_taps(clip, taps, latents=self._encoded(prior, views, clip))
        else:
            found = {taps[0]: prior(clip)}
        made = {}
        for tap, features in found.items():
            check_finite(features, f"prior {prior.settings.name!r}, tap {tap}, on scene {views.scene.name!r}")
            made[tap] = per_view(prior, features.to(self.judging.device), len(clip), views.places)
        return made

    def _encoded(self, prior: FrozenPrior, views: JudgedViews, clip: Tensor) -> Tensor | None:
        """A scene's latents, which no timestep changes, so that the VAE runs once."""
        if not isinstance(prior, DiffusionPrior) or prior is not self.swept.prior:
            return None
        if views.key not in self._latents:
            self._latents[views.key] = prior.encode(clip)
        return self._latents[views.key]

    def _pairs_of(self, index: int, features: Tensor) -> Pairs:
        grid = (features.shape[2], features.shape[3])
        if (index, grid) not in self._pairs:
            scene = self.views[index].scene
            self._pairs[index, grid] = self.judging.protocol.judged_pairs(scene, self.swept.prior, grid)
        return self._pairs[index, grid]

    def _key(self, index: int, timestep: int | None) -> str:
        prior, judging = self.swept.prior, self.judging
        parts = [FORMAT, "sweep", self.fingerprint, timestep, list(self.swept.taps), self.views[index].key]
        parts += [judging.protocol.name, judging.options, str(prior.dtype_on(judging.device))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _aligned(
    found: Mapping[str, Sequence[float]], pairs: Pairs, outline: SceneScores
) -> dict[str, tuple[float | None, ...]]:
    """Values of a tap's pairs in the order of the outline's: maps of another size may leave out other pairs."""
    made = {}
    for name, values in found.items():
        by_views = dict(zip(pairs.views, values, strict=True))
        made[name] = tuple(plain(by_views.get(views, math.nan)) for views in outline.pairs)
    return made


def _bytes(prior: FrozenPrior, frames: int) -> int:
    """Of one tap's maps of a clip, float32, twice: they are joined and then taken apart."""
    tokens = (prior.size[0] // prior.stride) * (prior.size[1] // prior.stride)
    return 8 * frames * tokens * prior.feature_dim


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
