"""Heads, losses and metrics of read-outs against what the released code of probe3d and VidFM3D computed."""

from __future__ import annotations

import dataclasses

import goldens
import pytest
import torch
from torch import Tensor

from vega3d_plugin.analysis.readouts.depth_heads import DepthHead, depth_from_bins, depth_from_sigmoid
from vega3d_plugin.analysis.readouts.losses import (
    camera_loss,
    dense_loss,
    depth_loss,
    log_gradient_loss,
    log_variance_loss,
    log_variance_loss_per_image,
)
from vega3d_plugin.analysis.readouts.metrics import align_points, depth_metrics, fit_scale_and_shift, point_error
from vega3d_plugin.analysis.readouts.poses import (
    decode_extrinsics,
    encode_cameras,
    pose_auc,
    rebase,
    relative_pose_errors,
)
from vega3d_plugin.analysis.readouts.training import warmup_cosine

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def depth() -> goldens.Golden:
    return goldens.load("space/probe_depth")


@pytest.fixture(scope="module")
def clips() -> goldens.Golden:
    return goldens.load("space/probe_vidfm3d")


def close(value: float | Tensor, expected: float, tolerance: float = TOLERANCE) -> bool:
    return float(value) == pytest.approx(expected, rel=tolerance, abs=tolerance)


# probe3d


def layers(golden: goldens.Golden) -> list[Tensor]:
    return [golden.inputs["feats"] * (i + 1) / 4 for i in range(4)]


def test_linear_head(depth: goldens.Golden) -> None:
    weights = goldens.below(depth.weights, "linear.")
    bins, dim, kernel, _ = weights["head.conv.weight"].shape
    head = DepthHead([dim], "linear", kernel=kernel, bins=bins)
    head.load_state_dict(weights)
    assert goldens.error(head([depth.inputs["feats"]]).detach(), depth.outputs["linear_head"]) < TOLERANCE


def test_dpt_head(depth: goldens.Golden) -> None:
    weights = goldens.below(depth.weights, "dpt.")
    dims = [weights[f"head.conv_{i}.weight"].shape[1] for i in range(4)]
    hidden, _, kernel, _ = weights["head.ref_0.resConfUnit1.conv.0.weight"].shape
    head = DepthHead(dims, "dpt", hidden, kernel, bins=len(weights["head.out_conv.2.bias"]))
    head.load_state_dict(weights)
    assert goldens.error(head(layers(depth)).detach(), depth.outputs["dpt_head"]) < TOLERANCE


def test_depth_from_bins_and_from_a_sigmoid(depth: goldens.Golden) -> None:
    scores = depth.inputs["bin_logits"]
    assert goldens.error(depth_from_bins(scores), depth.outputs["bindepth"]) < TOLERANCE
    assert goldens.error(depth_from_sigmoid(scores[:, :1]), depth.outputs["sigdepth"]) < TOLERANCE


@pytest.mark.parametrize("kind", ["scale_aware", "scale_invariant"])
def test_depth_metrics(depth: goldens.Golden, kind: str) -> None:
    found = depth_metrics(
        depth.inputs["depth_pred"], depth.inputs["depth_gt"], scale_invariant=kind == "scale_invariant"
    )
    for name, expected in depth.info["metrics"][kind].items():
        # A share may differ by one pixel whose ratio lies on the threshold.
        assert getattr(found, name).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4), name


def test_scale_and_shift(depth: goldens.Golden) -> None:
    found = fit_scale_and_shift(depth.inputs["depth_pred"], depth.inputs["depth_gt"])
    assert goldens.error(found, depth.outputs["aligned"]) < 1e-4


def test_depth_losses(depth: goldens.Golden) -> None:
    predicted, true = depth.inputs["depth_pred"], depth.inputs["depth_gt"]
    kept, expected = true.clone(), depth.info["losses"]
    assert close(depth_loss(predicted, true), expected["DepthLoss"])
    assert torch.equal(true, kept)  # released, truth beyond 10 m becomes 0 in the caller's tensor
    parts = {
        "sig_loss": log_variance_loss,
        "gradient_loss": log_gradient_loss,
        "depth_si_loss": log_variance_loss_per_image,
    }
    for name, loss in parts.items():
        assert close(loss(predicted, true), expected[name]), name


def test_schedule(depth: goldens.Golden) -> None:
    factors = {row["step"]: row["factor"] for row in depth.info["schedule"]}
    steps, warmup = _lengths(factors)
    for step, factor in factors.items():
        assert warmup_cosine(step, steps, warmup) == pytest.approx(factor, abs=1e-9), step


def _lengths(factors: dict[int, float]) -> tuple[int, float]:
    """The lengths of the whole and of the warm-up, which the file does not tell, from two of its rows."""
    rising = next(step for step, factor in factors.items() if 0.01 < factor < 1 and step > 0)
    warmup = round(0.99 * rising / (factors[rising] - 0.01), 6)
    last = max(factors)
    (steps,) = [n for n in range(last + 1, 4 * last) if abs(warmup_cosine(last, n, warmup) - factors[last]) < 1e-9]
    return steps, warmup


# VidFM3D


def test_pose_encoding_and_back(clips: goldens.Golden) -> None:
    extrinsics, intrinsics = clips.inputs["extrinsics"], clips.inputs["intrinsics"]
    size = tuple(clips.inputs["conf"].shape[-2:])
    found = encode_cameras(extrinsics, intrinsics, size)
    assert goldens.error(found, clips.outputs["pose_encoding"]) < TOLERANCE
    assert goldens.error(decode_extrinsics(found), extrinsics) < TOLERANCE


def predictions(golden: goldens.Golden) -> list[Tensor]:
    found = goldens.below(golden.inputs, "pose_pred.")
    return [found[key] for key in sorted(found, key=int)]


def test_camera_loss(clips: goldens.Golden) -> None:
    loss = camera_loss(predictions(clips), clips.outputs["pose_encoding"])
    names = {"total": "loss_camera", "translation": "loss_T", "rotation": "loss_R", "field_of_view": "loss_fl"}
    for field in dataclasses.fields(loss):
        assert close(getattr(loss, field.name), clips.info["camera_loss"][names[field.name]]), field.name


def test_relative_pose_errors_and_auc(clips: goldens.Golden) -> None:
    extrinsics = decode_extrinsics(predictions(clips)[-1])
    rotation, translation = relative_pose_errors(extrinsics, clips.inputs["extrinsics"])
    assert goldens.error(rotation, clips.outputs["rotation_error_deg"]) < 1e-4
    assert goldens.error(translation, clips.outputs["translation_error_deg"]) < 1e-4
    expected = clips.info["camera_loss"]
    for threshold in (5, 15):
        assert close((rotation < threshold).float().mean(), expected[f"Rac_{threshold}"])
        assert close((translation < threshold).float().mean(), expected[f"Tac_{threshold}"])
    for threshold, value in clips.info["auc"].items():
        assert close(pose_auc(rotation, translation, int(threshold)), value)
        assert close(pose_auc(rotation, translation, int(threshold)), expected[f"Auc_{threshold}"])


@pytest.mark.parametrize(("what", "normalise"), [("point", True), ("depth", False)])
def test_point_and_depth_loss(clips: goldens.Golden, what: str, normalise: bool) -> None:
    key = {"point": "points", "depth": "depth"}[what]
    loss = dense_loss(
        clips.inputs[f"{key}_pred"],
        clips.inputs[f"{key}_gt"],
        clips.inputs["conf"],
        normalise=normalise,
        gradients=True,
    )
    names = {
        "total": f"loss_{what}",
        "first": f"loss_first_{what}",
        "others": f"loss_other_{what}",
        "gradient": f"loss_grad_{what}",
        "gradient_first": f"loss_grad_first_{what}",
        "gradient_others": f"loss_grad_other_{what}",
    }
    for field in dataclasses.fields(loss):
        assert close(getattr(loss, field.name), clips.info[f"{what}_loss"][names[field.name]]), field.name


def test_aligned_points(clips: goldens.Golden) -> None:
    predicted, true, confidence = (clips.inputs[key] for key in ("points_pred", "points_gt", "conf"))
    for i, (expected, error) in enumerate(zip(clips.outputs["aligned"], clips.info["pmap_error"], strict=True)):
        aligned = align_points(predicted[i], true[i], confidence[i])
        assert goldens.error(aligned.movedim(-1, 1), expected) < TOLERANCE
        assert close(point_error(predicted[i], true[i], confidence[i]), error)


def test_rebased_clip(clips: goldens.Golden) -> None:
    inputs, outputs = clips.inputs, clips.outputs
    found = rebase(inputs["extrinsics"][0], inputs["points_gt"][0], inputs["depth_gt"][0, ..., 0])
    assert goldens.error(found.extrinsics, outputs["rebased_extrinsics"]) < TOLERANCE
    assert goldens.error(found.points, outputs["rebased_points"]) < TOLERANCE
    assert goldens.error(found.depth[..., None], outputs["rescaled_depth"]) < TOLERANCE
