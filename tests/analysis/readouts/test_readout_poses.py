"""Poses as numbers and their errors, away from the reference vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vega3d_plugin.analysis.readouts.poses import (
    decode_extrinsics,
    encode_cameras,
    matrix_to_quaternion,
    pose_auc,
    quaternion_to_matrix,
    rebase,
    relative_pose_errors,
)
from vega3d_plugin.errors import AnalysisError


def rotation(axis: int, degrees: float) -> Tensor:
    a, b = [i for i in range(3) if i != axis]
    matrix = torch.eye(3, dtype=torch.float64)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[a, a] = matrix[b, b] = cosine
    matrix[a, b], matrix[b, a] = (-sine, sine) if axis != 1 else (sine, -sine)
    return matrix


def extrinsics(rotations: list[Tensor], translations: list[list[float]]) -> Tensor:
    return torch.stack(
        [
            torch.cat([r, torch.tensor(t, dtype=torch.float64)[:, None]], 1)
            for r, t in zip(rotations, translations, strict=True)
        ]
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [0.0, 37.0, 120.0, 179.9, 180.0, -150.0])
def test_quaternions_and_back(axis: int, degrees: float) -> None:
    matrix = rotation(axis, degrees)
    quaternion = matrix_to_quaternion(matrix)
    assert float(quaternion.norm()) == pytest.approx(1)
    assert float(quaternion[3]) == pytest.approx(abs(math.cos(math.radians(degrees) / 2)), abs=1e-9)
    assert torch.allclose(quaternion_to_matrix(quaternion), matrix, atol=1e-9)
    assert torch.allclose(quaternion_to_matrix(-3 * quaternion), matrix, atol=1e-9)


def test_a_quaternion_of_length_zero_is_no_nan() -> None:
    zero = torch.zeros(4, requires_grad=True)
    matrix = quaternion_to_matrix(zero)
    matrix.sum().backward()
    assert bool(matrix.isfinite().all())
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


def test_fields_of_view() -> None:
    intrinsics = torch.tensor([[50.0, 0, 50], [0, 40, 40], [0, 0, 1]])
    camera = encode_cameras(extrinsics([rotation(2, 0)], [[1, 2, 3]])[0], intrinsics, (80, 100))
    assert camera[:3].tolist() == [1, 2, 3]
    assert camera[7:].tolist() == pytest.approx([math.pi / 2, math.pi / 2])
    assert torch.allclose(decode_extrinsics(camera)[:, 3], torch.tensor([1.0, 2, 3]))


def test_errors_of_a_known_turn() -> None:
    true = extrinsics([rotation(1, 0), rotation(1, 20), rotation(1, 40)], [[0, 0, 0], [1, 0, 0], [2, 0, 1]])
    wrong = true.clone()
    wrong[1, :, :3] = rotation(1, 27)
    turned, directions = relative_pose_errors(wrong[None], true[None])
    assert turned.tolist() == pytest.approx([7, 0, 7], abs=1e-3)
    assert bool((directions >= 0).all())
    assert bool((directions <= 90).all())


def test_the_sign_of_a_direction_does_not_count() -> None:
    true = extrinsics([rotation(0, 0)] * 2, [[0, 0, 0], [1, 0, 0]])
    other = extrinsics([rotation(0, 0)] * 2, [[0, 0, 0], [-5, 0, 0]])
    assert relative_pose_errors(other[None], true[None])[1].tolist() == pytest.approx([0], abs=1e-3)
    nowhere = extrinsics([rotation(0, 0)] * 2, [[0, 0, 0], [0, 0, 0]])
    assert relative_pose_errors(nowhere[None], true[None])[1].tolist() == pytest.approx([90], abs=1e-3)


def test_area_under_the_curve() -> None:
    zero = torch.zeros(3)
    assert pose_auc(zero, zero, 30) == pytest.approx(1)
    assert pose_auc(torch.full((3,), 31.0), zero, 30) == 0
    # One of two pairs at 10.2 degrees lies in the bin from 9.68 on: 20 of the first 30 cumulated bins count it.
    assert pose_auc(torch.tensor([10.2, 90.0]), torch.zeros(2), 30) == pytest.approx(0.5 * 20 / 30)


def test_an_area_needs_finite_errors_and_a_threshold_there_is() -> None:
    with pytest.raises(AnalysisError, match="1 NaN"):
        pose_auc(torch.tensor([1.0, float("nan")]), torch.zeros(2), 5)
    with pytest.raises(AnalysisError, match="at least one pair"):
        pose_auc(torch.zeros(0), torch.zeros(0), 5)
    with pytest.raises(AnalysisError, match=r"1\.\.31 degrees, found 45"):
        pose_auc(torch.zeros(2), torch.zeros(2), 45)


def test_rebasing_leaves_out_pixels_without_depth() -> None:
    cameras = extrinsics([rotation(1, 0), rotation(1, 30)], [[0, 0, 0], [1, 0, 0]])
    points = torch.full((2, 1, 2, 3), 2.0, dtype=torch.float64)
    points[:, 0, 1] = 1e6
    valid = torch.tensor([[[True, False]], [[True, False]]])
    found = rebase(cameras, points, points[..., 2], valid)
    assert float(found.points[0, 0, 0].norm()) == pytest.approx(1)
    assert found.scale == pytest.approx(1 / math.sqrt(12))
    assert torch.allclose(found.extrinsics[0], torch.eye(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("distance", [1e-5, 1e6])
def test_a_clip_without_a_scale_is_told(distance: float) -> None:
    cameras = extrinsics([rotation(1, 0)], [[0, 0, 0]])
    points = torch.full((1, 2, 2, 3), distance, dtype=torch.float64)
    with pytest.raises(AnalysisError, match="unit of the depth"):
        rebase(cameras, points, points[..., 2])
    with pytest.raises(AnalysisError, match="0 points"):
        rebase(cameras, points, points[..., 2], torch.zeros(1, 2, 2, dtype=torch.bool))
