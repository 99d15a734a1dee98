"""World coordinates: the released code's, and what geometry says."""

from __future__ import annotations

import math

import goldens
import pytest
import torch

from vega3d_plugin.errors import SceneError
from vega3d_plugin.scenes.coordinates import (
    PointMap,
    camera_points,
    point_map,
    point_maps,
    project,
    sample_nearest,
    to_world,
    token_points,
    visible,
)
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene

MILLIMETRES = 1000


def released_scene(inputs: dict[str, torch.Tensor]) -> Scene:
    """A scene of a golden's depth, pose, intrinsics and alignment; its pictures are black."""
    depth = inputs["depth"].float() / MILLIMETRES
    return Scene.from_arrays(
        torch.zeros(len(depth), 3, *depth.shape[1:]),
        depth,
        inputs["intrinsics"],
        inputs["pose"],
        alignment=inputs["axis_align"],
    )


def test_world_coordinates_are_the_released_ones() -> None:
    golden = goldens.load("space/scene_world_coords")
    maps = point_maps(released_scene(golden.inputs))
    expected = golden.outputs["world_coords"]
    assert (maps.points - expected).abs().max() < 2e-5
    assert torch.equal(maps.valid, golden.inputs["depth"] > 0)


def test_tokens_of_the_correspondence_score_are_the_released_ones() -> None:
    golden = goldens.load("space/correspondence_adjacent")
    config = golden.info["config"]
    seen = PointMap(golden.inputs["world_coords"], golden.inputs["depth_valid"].bool())
    expected = golden.outputs["world14"]
    tokens = seen.covering(tuple(config["out_hw"])).pooled(tuple(expected.shape[1:3]), "released")
    assert (tokens.points - expected).abs().max() < 2e-5
    assert (tokens.measured - golden.outputs["valid_ratio14"]).abs().max() < 1e-6
    assert torch.equal(tokens.valid(config["valid_ratio_threshold"]), golden.outputs["valid14"].bool())


def test_pixels_without_depth_are_averaged_in_only_as_released() -> None:
    points = torch.zeros(1, 2, 2, 3)
    points[0, 0, 0] = torch.tensor([4.0, 8.0, 12.0])
    valid = torch.zeros(1, 2, 2, dtype=torch.bool)
    valid[0, 0, 0] = True
    seen = PointMap(points, valid)
    assert seen.pooled((1, 1)).points.flatten().tolist() == [4, 8, 12]
    assert seen.pooled((1, 1), "released").points.flatten().tolist() == [1, 2, 3]
    assert seen.pooled((1, 1)).measured.item() == 0.25
    assert PointMap(points, valid & False).pooled((1, 1)).points.abs().max() == 0


def test_tokens_see_what_the_prior_sees() -> None:
    scene = rendered_scene(2, 2, (48, 64))
    whole = token_points(scene, (6, 8))
    cropped = token_points(scene, (4, 8), size=(32, 64))
    # A prior of 32x64 sees the middle two thirds of a picture of 48x64: the middle four of six rows of tokens.
    assert torch.allclose(cropped.points, whole.points[:, 1:5], atol=1e-6)
    squashed = token_points(scene, (14, 14), preset="released")
    maps = point_maps(scene)
    rows, columns = ((torch.arange(27 * 14) * side // 384) for side in (48, 64))
    expected = maps.points[0][rows][:, columns].reshape(14, 27, 14, 27, 3).mean(dim=(1, 3))
    assert torch.allclose(squashed.points[0], expected, atol=1e-5)


def test_there_and_back() -> None:
    scene = rendered_scene(3, 2, (48, 64))
    view = scene.views[0]
    seen = point_map(view)
    pixels, distance = project(seen.points.double(), view.intrinsics, view.pose)
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    assert (pixels - torch.stack([u, v], -1)).abs().max() < 1e-3
    assert (distance - view.depth()).abs().max() < 1e-5


def test_a_skewed_camera_goes_there_and_back_too() -> None:
    matrix = torch.tensor([[50.0, 2.5, 20.0], [0, 40.0, 15.0], [0, 0, 1]], dtype=torch.float64)
    depth = torch.rand(6, 8, dtype=torch.float64) + 1
    pixels, _ = project(camera_points(depth, matrix), matrix, torch.eye(4, dtype=torch.float64))
    v, u = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    assert (pixels - torch.stack([u, v], -1)).abs().max() < 1e-9


def test_visibility_is_occlusion_and_not_only_the_frame() -> None:
    """A near plate hides half of a far wall from the second camera."""
    depth = torch.full((2, 20, 20), 4.0)
    depth[1, :, :10] = 1.0
    matrix = torch.tensor([[20.0, 0, 9.5], [0, 20.0, 9.5], [0, 0, 1]])
    scene = Scene.from_arrays(torch.zeros(2, 3, 20, 20), depth, matrix, torch.eye(4).expand(2, 4, 4))
    wall = point_map(scene.views[0]).points
    seen, pixels = visible(wall, scene.views[1])
    assert seen[:, 10:].all()
    assert not seen[:, :10].any()
    assert pixels.shape == (20, 20, 2)
    # Behind the camera, beside the picture, and where nothing was measured, nothing is seen.
    assert not visible(wall * torch.tensor([1, 1, -1.0]), scene.views[1])[0].any()
    assert not visible(wall + torch.tensor([100.0, 0, 0]), scene.views[1])[0].any()
    assert not visible(wall, scene.views[1], torch.zeros(20, 20))[0].any()
    assert visible(wall + torch.tensor([0, 0, 0.07]), scene.views[1])[0][:, 12:18].all()
    assert not visible(wall + torch.tensor([0, 0, 0.2]), scene.views[1])[0].any()


def test_points_at_the_plane_of_the_camera_do_no_harm() -> None:
    points = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [math.inf, 0.0, 1.0], [math.nan, 0.0, 1.0], [1e30, 0, 1]])
    scene = Scene.from_arrays(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4), torch.eye(3), torch.eye(4)[None])
    assert not visible(points, scene.views[0])[0].any()
    assert sample_nearest(torch.ones(2, 2), torch.tensor([[0.4, 1.4], [-0.6, 0], [1.6, 1]])).tolist() == [1, 0, 0]


def test_poses_turn_and_move() -> None:
    pose = torch.tensor([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
    assert to_world(torch.tensor([1.0, 2.0, 3.0]), pose).tolist() == [8, 21, 33]


def test_a_scene_without_geometry_has_no_coordinates() -> None:
    flat = Scene.from_arrays(torch.zeros(2, 3, 4, 4))
    with pytest.raises(SceneError, match="lacks depth"):
        point_maps(flat)
    with pytest.raises(SceneError, match="it lacks depth and intrinsics and a pose"):
        point_map(flat.views[0])
    with pytest.raises(SceneError, match="only known with depth"):
        visible(torch.zeros(1, 3), flat.views[0])


def test_depth_maps_of_different_sizes() -> None:
    one, two = (
        Scene.from_arrays(
            torch.zeros(1, 3, 4, 4), torch.ones(1, side, 4), torch.eye(3), torch.eye(4)[None], names=[str(side)]
        )
        for side in (4, 5)
    )
    with pytest.raises(SceneError, match=r"different sizes: \[4, 4\] \('4'\) and \[5, 4\] \('5'\)"):
        point_maps(Scene("s", "here", one.views + two.views))
