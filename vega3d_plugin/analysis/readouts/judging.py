"""How good a trained read-out is on one scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .depth_heads import FURTHEST, DepthHead
from .heads import Prediction
from .losses import dense_loss
from .metrics import depth_metrics, point_error
from .poses import decode_extrinsics, pose_auc, relative_pose_errors
from .sampling import clip_truth, sample_views
from .training import FeatureScene, TrainingSettings, stack_clips

#: What each figure is.
FIGURES: Mapping[str, str] = {
    "points": "distance of the 3D points from the truth after a similarity was fitted, in units of the mean distance "
    "of the first view's points; lower is better",
    "depth": "difference from the true depth in the same unit, nothing fitted; lower is better",
    "auc@5": "relative poses, area under the curve of accuracy up to 5 degrees, 0 to 1; higher is better",
    "auc@30": "relative poses, area under the curve of accuracy up to 30 degrees, 0 to 1; higher is better",
    "d1": "linear head on single views: share of pixels within 25% of the true depth; higher is better",
    "rmse": "linear head: root of the mean squared error of depth, metres; lower is better",
    "d1 fitted": "d1 after scale and shift were fitted to each view; higher is better",
    "rmse fitted": "rmse after scale and shift were fitted to each view, metres; lower is better",
}
#: Figures of which more is better.
HIGHER = ("auc@5", "auc@30", "d1", "d1 fitted")
#: Clips of a scene that a read-out is judged on.
CLIPS = 8


@torch.no_grad()
def judge_head(
    head: nn.Module, scene: FeatureScene, settings: TrainingSettings, device: torch.device, clips: int = CLIPS
) -> dict[str, float]:
    """Points, depth and relative poses of one scene, the mean over clips drawn from its content and the seed.

    The same clips are drawn for every prior and every control.
    """
    rng = np.random.default_rng([settings.seed, int(scene.truth.fingerprint[:12], 16)])
    points, depths = list[float](), list[float]()
    rotations, translations = list[Tensor](), list[Tensor]()
    for _ in range(clips):
        truth = clip_truth(scene.truth, sample_views(scene.truth.usable, rng, settings.start))
        batch = stack_clips([scene], [truth], device)
        prediction: Prediction = head(batch.features, tuple(batch.valid.shape[-2:]))
        sure = truth.valid.float()
        points.append(point_error(prediction.points[0].cpu(), truth.points, sure))
        depths.append(float(dense_loss(prediction.depth.cpu(), truth.depth[None], sure[None], truth.valid[None]).total))
        found = decode_extrinsics(prediction.cameras[-1].float().cpu())
        for errors, part in zip(
            (rotations, translations), relative_pose_errors(found, truth.extrinsics[None]), strict=True
        ):
            errors.append(part)
    rotation, translation = torch.cat(rotations), torch.cat(translations)
    areas = {f"auc@{limit}": pose_auc(rotation, translation, limit) for limit in (5, 30)}
    return {"points": float(np.mean(points)), "depth": float(np.mean(depths)), **areas}


def predicted_depth(head: DepthHead, scene: FeatureScene, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the linear head sees in the usable views of a scene, and the truth, both ``[V, H, W]`` metres.

    Truth beyond 10 m, where the head ends, is left out (0), as are views without any other.
    """
    views = list(scene.truth.usable)
    true = scene.fine.depth[views].float()
    true = torch.where(true > FURTHEST, 0, true)
    predicted = read_depth(head, scene, views, device)
    seen = (true > 0).flatten(1).any(dim=1)
    return predicted[seen], true[seen]


@torch.no_grad()
def read_depth(head: DepthHead, scene: FeatureScene, views: Sequence[int], device: torch.device) -> Tensor:
    """What the linear head sees in some views, ``[V, H, W]`` metres."""
    depth: Tensor = head([scene.features[list(views)].to(device)])[:, 0]
    return depth.float().cpu()


def judge_depth(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Depth figures of one scene, the mean over its views; none where it has no depth within 10 m."""
    if not len(true):
        return {}
    plain, fitted = (
        depth_metrics(predicted[:, None], true[:, None], scale_invariant=is_fitted) for is_fitted in (False, True)
    )
    return {
        "d1": float(plain.d1.mean()),
        "rmse": float(plain.rmse.mean()),
        "d1 fitted": float(fitted.d1.mean()),
        "rmse fitted": float(fitted.rmse.mean()),
    }
