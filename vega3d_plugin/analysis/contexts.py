"""A prior in each of its contexts, and one feature map for each view that is judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts.clips import clip_key
from ..contracts.errors import AnalysisError, PriorError, near_misses
from ..contracts.priors import Prior
from ..contracts.settings import PriorSettings
from ..contracts.tables import PRIORS
from ..features.store import FeatureStore, dtype_key
from ..priors.diffusion.prior import DiffusionPrior
from ..priors.frozen.prior import FrozenPrior
from ..priors.load import load_prior
from ..priors.resolving import resolve
from ..scenes.scene import Scene
from ..scenes.views import uniform
from .adjacent import check_finite
from .twin import name_of

#: A prior as users name it.
AnyPrior = Prior | PriorSettings | str


@dataclass(frozen=True, eq=False)
class JudgedViews:
    """The views of a scene that are judged, and the clip that a prior is shown.

    Attributes:
        scene: with the judged views only, in time order.
        clip: ``[T, 3, H, W]`` in [0, 1].
        places: which frames of the clip the judged views are.
        repeated: frames of the clip that stand for views that the scene does not have.
    """

    scene: Scene
    clip: Tensor
    places: tuple[int, ...]
    repeated: int = 0

    @cached_property
    def key(self) -> str:
        """Names their content and geometry."""
        return f"{self.scene.fingerprint}-{clip_key(self.clip)}-{self.places}"


def contexts_of(prior: AnyPrior, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The contexts to judge a prior in: those wanted, or all that it has.

    Raises:
        PriorError: a context that it has not.
    """
    settings = settings_of(prior)
    known: tuple[str, ...] = (settings.context,) if settings else ("clip",)
    if settings is not None and settings.name in PRIORS.names() and _reloads(prior):
        known = PRIORS.get(settings.name).contexts
    if wanted is None:
        return tuple(known)
    for context in wanted:
        if context not in known:
            raise PriorError(
                f"Prior {_name(prior)!r} has no context {context!r}.{near_misses(context, known)} "
                f"It has: {', '.join(known)}."
            )
    return tuple(dict.fromkeys(wanted))


def in_context(prior: AnyPrior, context: str) -> Prior:
    """The prior in one context, loaded where it is not at hand.

    Raises:
        PriorError: its weights are others than those that its settings lead to, so it cannot be loaded again.
    """
    if isinstance(prior, Prior):
        settings = prior.settings
        if settings is None or settings.context == context:
            return prior
        return same_weights(prior, load_prior(with_changes(settings, context=context)))
    settings = settings_of(prior)
    assert settings is not None  # of a name or settings
    return load_prior(with_changes(settings, context=context))


def same_weights(prior: Prior, other: Prior) -> Prior:
    """``other``, which was loaded again with changed settings, if its weights are those of ``prior``.

    Raises:
        PriorError: they are not.
    """
    if isinstance(prior, FrozenPrior) and isinstance(other, FrozenPrior):
        changed, other.settings = other.settings, prior.settings
        other._fingerprint = None
        found = other.fingerprint
        other.settings = changed
        other._fingerprint = None
        if found != prior.fingerprint:
            raise PriorError(
                f"Prior {prior.settings.name!r} was changed since it was loaded: its settings lead to other weights "
                f"(fingerprint {found}, it has {prior.fingerprint}). Judge it in its own context "
                f"{prior.settings.context!r} alone, or save the changed weights and load them."
            )
    return other


def judged_views(prior: Prior, scene: Scene, views: int | Sequence[int]) -> JudgedViews:
    """Choose views, and make the clip that the prior is shown.

    In context ``video`` a step of the prior's map covers several frames. There each judged view is the first frame of
    a step, and the step is filled with the views that follow it, so that all contexts judge the same views.

    Args:
        prior: whose context counts.
        scene: any.
        views: how many, spread evenly over the scene; or their indices.

    Raises:
        AnalysisError: fewer than two views.
        SceneError: an index out of range, or frames of different sizes.
    """
    chosen = list(views) if not isinstance(views, int) else uniform(len(scene), max(1, views))
    chosen = sorted(set(chosen))
    if len(chosen) < 2:
        raise AnalysisError(
            f"Scene {scene.name!r} ({scene.source}) has {len(scene)} views, of which {len(chosen)} would be judged. "
            "Correspondence needs at least two."
        )
    judged = scene.select(chosen)
    settings = prior.settings
    if settings is None or settings.context != "video":
        return JudgedViews(judged, judged.frames(), tuple(range(len(chosen))))
    shown, places = _as_video(prior, chosen, len(scene))
    frames = scene.select(shown).frames()
    order = {index: place for place, index in enumerate(dict.fromkeys(shown))}
    clip = frames[torch.tensor([order[index] for index in shown])]
    return JudgedViews(judged, clip, tuple(places), len(shown) - len(order))


def _as_video(prior: Prior, chosen: list[int], total: int) -> tuple[list[int], list[int]]:
    """Indices of the views to show, and the places of the judged ones among them."""
    stride = prior.time_stride if isinstance(prior, DiffusionPrior) else getattr(prior, "frames_per_step", 1)
    shown: list[int] = []
    places = []
    for number, index in enumerate(chosen):
        places.append(len(shown))
        # The first step of a causal video VAE is one frame.
        count = 1 if number == 0 and isinstance(prior, DiffusionPrior) else stride
        after = chosen[number + 1] if number + 1 < len(chosen) else total
        shown += [index + k * (after - index) // count for k in range(count)]
    return shown, places


class Extractor:
    """Feature maps of judged views, from a store where there is one.

    Args:
        prior: in its context.
        folder: of stores, one subfolder for each prior and its settings; None: nothing is kept.
        device: where it runs; default: the prior's own setting, or the CPU.
    """

    def __init__(self, prior: Prior, folder: Path | None = None, device: torch.device | None = None) -> None:
        self.prior, self.device = prior, device or torch.device("cpu")
        self.store: FeatureStore | None = None
        if folder is not None:
            self.store = FeatureStore(folder / f"{name_of(prior)}-{prior.fingerprint[:16]}", memory_bytes=0)
            self.store.bind(prior)

    def maps(self, views: JudgedViews) -> Tensor:
        """One map for each judged view, float32 ``[V, C, h, w]``.

        Raises:
            AnalysisError: features that are not finite, or one map for several of the views.
        """
        features = self._features(views.clip)
        check_finite(features, f"prior {name_of(self.prior)!r} on scene {views.scene.name!r}")
        return per_view(self.prior, features, len(views.clip), views.places)

    def _features(self, clip: Tensor) -> Tensor:
        clip = clip.to(self.device)
        if self.store is None:
            return self.prior(clip).to(self.device)
        key = dtype_key(clip_key(clip), self.prior.dtype_on(self.device))
        features = self.store.get(key)
        if features is None:
            features = self.prior(clip)
            self.store.put(key, features)
        return features.to(self.device)


def per_view(prior: Prior, features: Tensor, frames: int, places: Sequence[int]) -> Tensor:
    """Feature steps ``[T', ...]`` of a clip to those that show the frames at ``places``, float32.

    Raises:
        AnalysisError: two of the frames are shown by one step.
    """
    steps = features.shape[0]
    spans = prior.spans(frames, steps) or [(i / steps, (i + 1) / steps) for i in range(steps)]
    middles = [(place + 0.5) / frames for place in places]
    found = [next(i for i, (_, end) in enumerate(spans) if middle < end or i == steps - 1) for middle in middles]
    if len(set(found)) != len(found):
        raise AnalysisError(
            f"Prior {name_of(prior)!r} gives {steps} maps for {frames} frames, so several of the judged views have the "
            "same one. Judge it in another context."
        )
    # In one layout whatever made them: sums round by layout.
    return features[torch.tensor(found, device=features.device)].float().contiguous()


def joined(prior: AnyPrior | Sequence[AnyPrior]) -> Iterator[AnyPrior]:
    """One or several priors as several."""
    if isinstance(prior, Prior | PriorSettings | str):
        yield prior
    else:
        yield from prior


def with_changes(settings: PriorSettings, **changes: Any) -> PriorSettings:
    """The same settings but for some."""
    return PriorSettings.parse({**settings.to_dict(), **changes})


def settings_of(prior: AnyPrior) -> PriorSettings | None:
    """All settings of a prior, those left open filled in; None for one that has none."""
    if isinstance(prior, Prior):
        return prior.settings
    if isinstance(prior, str):
        PRIORS.get(prior)
        prior = PriorSettings.parse({"name": prior})
    return resolve(prior)


def _reloads(prior: AnyPrior) -> bool:
    """Whether its settings lead to it again: not where a function or a module of the user's own was wrapped."""
    return not isinstance(prior, Prior) or isinstance(prior, FrozenPrior)


def _name(prior: AnyPrior) -> str:
    return prior if isinstance(prior, str) else name_of(prior) if isinstance(prior, Prior) else prior.name
