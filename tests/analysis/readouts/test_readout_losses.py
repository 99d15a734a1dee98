"""Losses and metrics where the released code is silent: NaN, no depth, views of which none is left."""

from __future__ import annotations

import pytest
import torch

from vega3d_plugin.analysis.readouts.losses import camera_loss, dense_loss, depth_loss, log_gradient_loss
from vega3d_plugin.analysis.readouts.metrics import (
    align_points,
    depth_metrics,
    fit_scale_and_shift,
    fit_similarity,
    point_error,
)
from vega3d_plugin.errors import AnalysisError

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(1, 3, 4, 5, 3, generator=GENERATOR) + 3
SURE = torch.ones(1, 3, 4, 5)


def test_invalid_pixels_do_not_count_whatever_they_hold() -> None:
    valid = torch.ones(1, 3, 4, 5, dtype=torch.bool)
    valid[0, 1, 2] = False
    spoiled = POINTS.clone()
    spoiled[~valid] = float("nan")
    clean = dense_loss(POINTS * 1.1, POINTS, SURE, valid, normalise=True, gradients=True)
    found = dense_loss(POINTS * 1.1, spoiled, SURE, valid, normalise=True, gradients=True)
    assert float(found.total) == pytest.approx(float(clean.total))
    assert found.gradient is not None
    assert clean.gradient is not None
    assert float(found.gradient) == pytest.approx(float(clean.gradient))


def test_normalised_points_have_no_scale() -> None:
    assert float(dense_loss(POINTS * 7, POINTS, SURE, normalise=True).total) == pytest.approx(0, abs=1e-5)
    assert float(dense_loss(POINTS * 7, POINTS, SURE).total) > 1


def test_nan_is_an_error_and_not_zero() -> None:
    broken = POINTS.clone()
    broken[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(AnalysisError, match="1 values of 20 that are NaN or infinite"):
        dense_loss(broken, POINTS, SURE)
    with pytest.raises(AnalysisError, match="camera loss"):
        camera_loss([torch.full((1, 2, 9), float("inf"))], torch.zeros(1, 2, 9))
    depth = torch.ones(1, 1, 8, 8)
    with pytest.raises(AnalysisError, match="depth loss"):
        depth_loss(depth * float("nan"), depth)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(AnalysisError, match="No pixel"):
        dense_loss(POINTS, POINTS, SURE, torch.zeros(1, 3, 4, 5, dtype=torch.bool))
    with pytest.raises(AnalysisError, match="No pixel"):
        depth_loss(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(AnalysisError, match="No pixel"):
        depth_loss(torch.ones(1, 1, 8, 8), torch.full((1, 1, 8, 8), 11.0))
    with pytest.raises(AnalysisError, match=r"Images \[1\] of 2"):
        depth_metrics(torch.ones(2, 1, 2, 2), torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)]))
    with pytest.raises(AnalysisError, match="No point"):
        point_error(POINTS[0], POINTS[0], torch.zeros(3, 4, 5))


def test_a_tiny_depth_map_has_a_gradient_loss() -> None:
    true = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    assert float(log_gradient_loss(true, true)) == 0
    assert float(log_gradient_loss(true.flip(-1), true)) > 0


def test_scale_and_shift_of_a_constant_prediction_stay() -> None:
    constant, true = torch.full((1, 1, 3, 3), 2.0), torch.rand(1, 1, 3, 3, generator=GENERATOR) + 1
    assert torch.equal(fit_scale_and_shift(constant, true), constant)
    assert torch.allclose(fit_scale_and_shift(true * 3 - 1, true), true, atol=1e-4)


def test_a_similarity_is_found_and_mirrors_are_not() -> None:
    points = torch.randn(20, 3, generator=GENERATOR, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64))[0]
    turn = turn * torch.det(turn).sign()
    rotation, translation, scale = fit_similarity(points, 2.5 * points @ turn.T + 1)
    assert torch.allclose(rotation, turn, atol=1e-9)
    assert float(scale) == pytest.approx(2.5)
    assert translation.tolist() == pytest.approx([1, 1, 1])
    mirrored = fit_similarity(points, points * torch.tensor([-1.0, 1, 1], dtype=torch.float64))[0]
    assert float(torch.det(mirrored)) == pytest.approx(1)


def test_too_few_points_stay_where_they_are() -> None:
    confidence = torch.zeros(3, 4, 5)
    confidence[0, 0, :2] = 1
    assert torch.equal(align_points(POINTS[0] * 2, POINTS[0], confidence), POINTS[0] * 2)


def test_the_fit_uses_no_point_without_depth() -> None:
    true, confidence = POINTS[0].clone(), torch.ones(3, 4, 5)
    confidence[0] = 0
    true[0] = 0
    assert point_error(POINTS[0] * 3 + 1, true, confidence) == pytest.approx(0, abs=1e-5)
