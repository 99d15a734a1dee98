"""A small read-out at every timestep and tap of a sweep, for its heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import AnalysisError
from ..contexts import JudgedViews
from .judging import HIGHER, judge_depth, judge_head, predicted_depth
from .results import HEADLINES
from .sampling import VIEWS, split_scenes
from .sources import capped
from .training import FeatureScene, Standard, TrainingSettings, train_depth_head, train_head
from .truth import SceneTruth, scene_truth

#: Tokens of a view at most; many cells are trained, so fewer than for a read-out on its own.
MOST_TOKENS = 160
#: Shorter than a read-out on its own: cells are compared with each other.
SHORT = TrainingSettings(steps=200, depth_steps=100)


class SweepReadout:
    """What ``vega3d.analysis.sweep`` takes as ``readout``: trains both heads on the maps of a cell.

    Args:
        training: of the heads; the same for every cell, the seed too.
        share: of the scenes that are held out.
        device: where heads are trained.
    """

    def __init__(
        self, training: TrainingSettings = SHORT, share: float = 0.25, device: torch.device | None = None
    ) -> None:
        self.training, self.share, self.device = training, share, device or torch.device("cpu")
        self._truths: dict[tuple[str, tuple[int, int]], SceneTruth] = {}

    def __call__(self, maps: Sequence[Tensor], views: Sequence[JudgedViews]) -> Mapping[str, float]:
        """Figures by name, means over the held-out scenes.

        Args:
            maps: ``[V, C, h, w]`` of each scene.
            views: the judged views of each scene.

        Raises:
            AnalysisError: too few scenes or views.
        """
        for each in views:
            if len(each.scene) < VIEWS:
                raise AnalysisError(
                    f"Scene {each.scene.name!r} ({each.scene.source}) is judged on {len(each.scene)} views, and a "
                    f"read-out takes {VIEWS} at once. Judge more views."
                )
        split = split_scenes([each.scene.fingerprint for each in views], self.share, self.training.seed)
        small = [capped(each.float().cpu(), MOST_TOKENS) for each in maps]
        standard = Standard.of([small[i] for i in split.training])
        scenes = [self._scene(standard(each), seen) for each, seen in zip(small, views, strict=True)]
        training = [scenes[i] for i in split.training]
        head = train_head(training, self.training, self.device)
        found = [judge_head(head, scenes[i], self.training, self.device) for i in split.held_out]
        if all(each.scene.metric for each in views):
            linear = train_depth_head(training, self.training, self.device)
            for figures, i in zip(found, split.held_out, strict=True):
                figures |= judge_depth(*predicted_depth(linear, scenes[i], self.device))
        names = [name for name in HEADLINES if name in found[0]]
        return {_title(name): float(np.mean([each[name] for each in found])) for name in names}

    def _scene(self, maps: Tensor, views: JudgedViews) -> FeatureScene:
        height, width = maps.shape[-2:]
        return FeatureScene(maps, self._truth(views, (height, width)), self._truth(views, (4 * height, 4 * width)))

    def _truth(self, views: JudgedViews, grid: tuple[int, int]) -> SceneTruth:
        key = (views.key, grid)
        if key not in self._truths:
            self._truths[key] = scene_truth(views.scene, lambda size: views.framing, grid)
        return self._truths[key]


def _title(name: str) -> str:
    """A heat map shows more as lighter, so what is better must be said."""
    return f"read-out {name}{'' if name in HIGHER else ' (lower is better)'}"
