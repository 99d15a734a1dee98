"""World points of patches and their embedding: the released code's values, and what shapes may be."""

from __future__ import annotations

import pytest
import torch
from support import goldens

from vega3d_plugin.branch.positions import (
    POINTS,
    MlpEmbedding,
    Reduction,
    SinusoidEmbedding,
    discretised,
    patch_points,
    token_places,
)
from vega3d_plugin.contracts.clips import Clip, TokenGrid
from vega3d_plugin.contracts.errors import AlignmentError, SettingsError
from vega3d_plugin.scenes.coordinates import PointMap

GOLDEN = goldens.load("space/position_embedding")
CONFIG = GOLDEN.info["config"]
SIDE = 384


def world() -> torch.Tensor:
    """[V, 384, 384, 3]: every cell of the coarse tensor repeated."""
    coarse = GOLDEN.inputs["world_coords_coarse"]
    times = SIDE // coarse.shape[1]
    return coarse.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def discrete(points: torch.Tensor) -> torch.Tensor:
    return discretised(points, tuple(CONFIG["min"]), tuple(CONFIG["max"]), CONFIG["voxel"])


@pytest.mark.parametrize("how", list(POINTS))
def test_points_of_patches_are_the_released_ones(how: Reduction) -> None:
    found = patch_points(world(), CONFIG["patch"], how)
    assert found.shape == GOLDEN.outputs[how].shape
    assert goldens.error(found, GOLDEN.outputs[how]) < (1e-6 if how == "avg" else 1e-12)


def test_places_of_a_clips_tokens_are_the_released_ones() -> None:
    points, count = world(), len(world())
    everywhere = torch.ones(points.shape[:3], dtype=torch.bool)
    clip = Clip(torch.zeros(count, 3, SIDE, SIDE), TokenGrid(count, 14, 14))
    found = token_places(PointMap(points, everywhere), clip)
    assert torch.equal(discrete(found), GOLDEN.outputs["avg_discrete"])


def test_pixels_without_depth_are_left_out_and_tokens_without_any_lie_at_the_camera() -> None:
    points = torch.zeros(1, 4, 4, 3)
    points[..., :2, :] = 3.0
    points[0, 0, 0] = 9.0
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = valid[0, :2, 2:] = False
    found = token_places(PointMap(points, valid), Clip(torch.zeros(1, 3, 4, 4), TokenGrid(1, 2, 2)))
    assert found[0, ..., 0].tolist() == [[3.0, 0.0], [3.0, 0.0]]
    with pytest.raises(AlignmentError, match="have no places on a token grid"):
        token_places(PointMap(points, valid), Clip(torch.zeros(2, 3, 4, 4), TokenGrid(1, 2, 2)))


def test_places_on_the_raster_are_the_released_ones() -> None:
    assert torch.equal(discrete(GOLDEN.outputs["avg"]), GOLDEN.outputs["avg_discrete"])


def test_the_defaults_are_the_released_settings() -> None:
    wide = torch.tensor([[-99.0, -15.0, 0.0], [99.0, 0.04, 4.96], [0.05, 15.0, -5.0]])
    assert discretised(wide).tolist() == [[0, 0, 50], [300, 150, 100], [150, 300, 0]]


@pytest.mark.parametrize("size", CONFIG["dims"])
def test_sinusoids_are_the_released_ones(size: int) -> None:
    expected = GOLDEN.outputs[f"sin3d.{size}"]
    tokens = GOLDEN.outputs["avg_discrete"].flatten(1, 2)[:, : expected.shape[1]]
    assert goldens.error(SinusoidEmbedding(size)(tokens), expected) < 1e-6


def test_sinusoids_of_several_points_are_the_released_ones() -> None:
    expected = GOLDEN.outputs["sin3d.points2"]
    # Points in metres, not their places on the raster.
    tokens = GOLDEN.outputs["minmax"].flatten(1, 2)[:, : expected.shape[1]]
    assert goldens.error(SinusoidEmbedding(expected.shape[-1], 2)(tokens), expected) < 1e-6


def test_the_mlp_is_the_released_one() -> None:
    names = [name for name in GOLDEN.outputs if name.startswith("mlp.")]
    assert names
    for name in names:
        expected = GOLDEN.outputs[name]
        embedding = MlpEmbedding(expected.shape[-1])
        embedding.load_state_dict(GOLDEN.weights)
        tokens = GOLDEN.outputs["avg_discrete"].flatten(1, 2)[:, : expected.shape[1]]
        assert goldens.error(embedding(tokens).detach(), expected) < 1e-5


def test_every_output_is_looked_at() -> None:
    seen = {*POINTS, "avg_discrete", "sin3d.points2", *(f"sin3d.{size}" for size in CONFIG["dims"])}
    assert {name for name in GOLDEN.outputs if not name.startswith("mlp.")} == seen


def test_channels_left_over_are_zero() -> None:
    token = SinusoidEmbedding(32)(torch.full((1, 3), 7.0))[0]
    assert (token[30:] == 0).all()
    assert (token[:30] != 0).all()


def test_half_precision_keeps_the_dtype_and_the_phase() -> None:
    points = torch.tensor([[250.0, 3.0, 91.0]])
    low = SinusoidEmbedding(48)(points.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - SinusoidEmbedding(48)(points)).abs().max() < 0.01


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(AlignmentError, match=r"at least one patch of 27 pixels, found \[1, 20, 40, 3\]"):
        patch_points(torch.zeros(1, 20, 40, 3))
    with pytest.raises(SettingsError, match="unknown; known: avg, minmax"):
        patch_points(torch.zeros(1, 27, 27, 3), how="mean")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="multiple of 3"):
        patch_points(torch.zeros(1, 28, 28, 3), 14, "sample9")
    with pytest.raises(AlignmentError, match=r"must be \[\.\.\., 2, 3\] of floats, found \[4, 3\]"):
        SinusoidEmbedding(48, 2)(torch.zeros(4, 3))
    with pytest.raises(AlignmentError, match=r"of torch\.int64"):
        SinusoidEmbedding(48)(torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(SettingsError, match="at least 6 channels, found 5"):
        SinusoidEmbedding(5, 2)
    with pytest.raises(SettingsError, match="above 0, found 0"):
        discretised(torch.zeros(1, 3), voxel=0)
