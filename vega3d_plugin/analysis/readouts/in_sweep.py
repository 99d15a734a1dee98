"""A read-out for every cell of a sweep: the light one, probe3d's linear depth head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import AnalysisError
from ...priors.base import Prior
from ..contexts import JudgedViews
from .judging import judge_depth, predicted_depth
from .sampling import split_scenes
from .training import FeatureScene, Standard, TrainingSettings, train_depth_head
from .truth import scene_truth

_NAME = "depth d1"


@dataclass(frozen=True)
class DepthReadout:
    """Trains probe3d's linear depth head on three quarters of the scenes, and judges it on the others.

    For ``readout`` of :func:`vega3d.analysis.sweep`.

    Attributes:
        steps: of the training, for each cell.
        seed: of the split, the head and the order of views.
        device: where it is trained.
        figures: what it gives.
    """

    steps: int = 150
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    figures: ClassVar[Mapping[str, str]] = {
        _NAME: "share of pixels of held-out scenes whose depth a linear head, trained on the cell's features, has "
        "within 25%"
    }

    def __call__(self, maps: Sequence[Tensor], views: Sequence[JudgedViews], prior: Prior) -> Mapping[str, float]:
        """See :class:`~vega3d_plugin.analysis.sweeping.Readout`.

        Raises:
            AnalysisError: fewer than four scenes, or ones that are known up to their scale only.
        """
        vague = [each.scene.name for each in views if not each.scene.metric]
        if vague:
            raise AnalysisError(
                f"Scene {vague[0]!r} is known up to its scale only, and the depth read-out reads metres. Sweep without "
                "a read-out."
            )
        settings = TrainingSettings(depth_steps=self.steps, seed=self.seed)
        split = split_scenes([each.scene.fingerprint for each in views], seed=self.seed)
        standard = Standard.of([maps[i] for i in split.training])
        scenes = [_scene(standard(each), shown, prior) for each, shown in zip(maps, views, strict=True)]
        head = train_depth_head([scenes[i] for i in split.training], settings, self.device)
        judged = [judge_depth(*predicted_depth(head, scenes[i], self.device)) for i in split.held_out]
        known = [each["d1"] for each in judged if "d1" in each]
        if not known:
            raise AnalysisError(
                "The held-out scenes have no depth within 10 m, beyond which the depth head does not see."
            )
        return {_NAME: float(np.mean(known))}


def _scene(maps: Tensor, shown: JudgedViews, prior: Prior) -> FeatureScene:
    height, width = maps.shape[-2:]
    coarse = scene_truth(shown.scene, prior.framing, (height, width))
    # The head predicts at four times the grid of the features.
    return FeatureScene(maps, coarse, scene_truth(shown.scene, prior.framing, (4 * height, 4 * width)))
