"""Probe3D's recall against the reference vectors."""

from __future__ import annotations

import goldens
import pytest
import torch
import torch.nn.functional as F

from vega3d_plugin.analysis.partners import relative_angle
from vega3d_plugin.analysis.recall import DepthPixels, PixelMatches, match_pixels


@pytest.fixture(scope="module")
def golden() -> goldens.Golden:
    return goldens.load("space/probe_correspondence")


@pytest.fixture(scope="module")
def matches(golden: goldens.Golden) -> PixelMatches:
    inputs, config = golden.inputs, golden.info["config"]
    scale = config["scale_factor"]
    depth = F.interpolate(inputs["depth"], scale_factor=scale)
    intrinsics = inputs["K"] * torch.tensor([[scale], [scale], [1.0]])
    first, second = (DepthPixels.of(each[0], intrinsics) for each in depth)
    maps = inputs["feat0"], inputs["feat1"]
    return match_pixels(maps, (first, second), intrinsics, inputs["Rt_0_to_1"], config["num_corr"])


def test_weights_and_errors(golden: goldens.Golden, matches: PixelMatches) -> None:
    weights = matches.weight.sort(descending=True).values
    expected = golden.outputs["sorted_weight"].sort(descending=True).values
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    errors = matches.error.sort().values
    torch.testing.assert_close(errors, golden.outputs["sorted_error"].sort().values, rtol=1e-4, atol=1e-3)


def test_recall(golden: goldens.Golden, matches: PixelMatches) -> None:
    expected = {float(limit): value for limit, value in golden.info["recall"].items()}
    assert matches.recall(list(expected)) == pytest.approx(expected, abs=1e-6)


def test_angle(golden: goldens.Golden) -> None:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = golden.inputs["Rt_0_to_1"].double()
    angle = relative_angle(torch.eye(4, dtype=torch.float64), pose)
    assert angle == pytest.approx(golden.info["relative_angle_deg"], abs=1e-3)
