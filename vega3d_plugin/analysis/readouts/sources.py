"""The features that are read out: a prior's own, and those of its controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import AnalysisError
from ...priors.base import Prior
from ...scenes.scene import Scene
from ..contexts import Extractor, JudgedViews, judged_views
from ..controls import Absent, feature_controls
from ..results import ITSELF
from ..twin import untrained_twin
from .sampling import Split

# Clips of all scenes together that are kept rather than read again for every control.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Sampling:
    """How scenes become features. Attributes: ``views`` of each scene; ``most_tokens`` of a view, larger maps are
    averaged down by a whole factor, None for none; ``seed`` of the twin and of noise."""

    views: int
    most_tokens: int | None
    seed: int


class ShownScenes:
    """Scenes as one prior is shown them, and every feature map that is read out of them.

    Args:
        prior: in its context.
        scenes: all of them.
        split: which of them are held out.
        sampling: see there.
        store: folder of feature stores; None keeps nothing.
        device: where priors run.
        tell: told (scenes done).
    """

    def __init__(
        self,
        prior: Prior,
        scenes: Sequence[Scene],
        split: Split,
        sampling: Sampling,
        store: Path | None = None,
        device: torch.device | None = None,
        tell: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.prior, self.scenes, self.split, self.sampling = prior, tuple(scenes), split, sampling
        self.store, self.device, self.tell = store, device or torch.device("cpu"), tell
        self._clips: dict[int, JudgedViews] = {}
        self._bytes = 0
        self._own: list[Tensor] | None = None
        self._twin: Prior | Absent | None = None

    def views(self, index: int) -> JudgedViews:
        """A scene's judged views and the clip of them."""
        if index in self._clips:
            return self._clips[index]
        views = judged_views(self.prior, self.scenes[index], self.sampling.views)
        if self._bytes + views.clip.nbytes <= _KEPT_BYTES:
            self._clips[index] = views
            self._bytes += views.clip.nbytes
        return views

    def features(self, control: str) -> list[Tensor] | Absent:
        """Maps ``[V, C, h, w]`` float32 of every scene, on the CPU, or why there are none.

        Args:
            control: ``itself`` or a name of :data:`~.results.CONTROLS`.
        """
        if control == ITSELF:
            return self.own()
        if control == "other scenes":
            return self._other_scenes()
        found = []
        for index in range(len(self.scenes)):
            maps = self._control(control, index)
            if isinstance(maps, Absent):
                return maps
            found.append(maps.float().cpu())
            self.tell(index + 1)
        return found

    def own(self) -> list[Tensor]:
        """The prior's own maps of every scene; computed once."""
        if self._own is None:
            self._own = []
            for index in range(len(self.scenes)):
                self._own.append(self._extracted(self.prior, self.views(index)).cpu())
                self.tell(index + 1)
            grids = {tuple(maps.shape[-2:]) for maps in self._own}
            if len(grids) > 1:
                raise AnalysisError(
                    f"The prior's maps differ in size between scenes: {sorted(grids)}. Give scenes whose pictures have "
                    "one size, or a prior with a size."
                )
        return self._own

    def _control(self, control: str, index: int) -> Tensor | Absent:
        views, own = self.views(index), self.own()[index]
        # Another seed for each scene, or noise would tell the number of the view.
        seed = (self.sampling.seed * 1_000_003 + int(views.scene.fingerprint[:12], 16)) % (1 << 62)
        makers = feature_controls(
            self.prior, self._make_twin, views, own, seed, lambda twin: self._extracted(twin, views)
        )
        return makers[control]()

    def _other_scenes(self) -> list[Tensor]:
        """Each scene with the features of the next one on its side of the split."""
        own = self.own()
        moved = list(own)
        for side in (self.split.training, self.split.held_out):
            for place, index in enumerate(side):
                other = own[side[(place + 1) % len(side)]]
                count = len(own[index])
                moved[index] = other[[i % len(other) for i in range(count)]]
        return moved

    def _extracted(self, prior: Prior, views: JudgedViews) -> Tensor:
        return capped(Extractor(prior, self.store, self.device).maps(views), self.sampling.most_tokens)

    def _make_twin(self) -> Prior | Absent:
        if self._twin is None:
            try:
                self._twin = untrained_twin(self.prior, self.sampling.seed)
            except AnalysisError as error:
                self._twin = Absent(str(error))
        return self._twin


def capped(maps: Tensor, most: int | None) -> Tensor:
    """Maps ``[V, C, h, w]`` averaged down by the smallest whole factor that leaves at most ``most`` tokens a view."""
    height, width = maps.shape[-2:]
    if most is None or height * width <= most:
        return maps
    factor = math.ceil(math.sqrt(height * width / most))
    return F.adaptive_avg_pool2d(maps, (max(1, height // factor), max(1, width // factor)))
