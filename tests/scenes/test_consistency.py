"""The usual mistakes about poses and units are found by comparing depth between views, and right scenes pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vega3d_plugin.errors import SceneError
from vega3d_plugin.scenes.consistency import GeometryWarning, check_geometry
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene

FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
SEEDS = range(6)


def mistaken(scene: Scene, pose=lambda pose: pose, depth=lambda depth: depth) -> Scene:
    return replace(
        scene,
        views=tuple(
            replace(view, pose=pose(view.pose), read_depth=lambda view=view: depth(view.depth()))
            for view in scene.views
        ),
    )


MISTAKES = {
    "world-to-camera. .* Invert them": {"pose": torch.linalg.inv},
    r"OpenGL's axes \(y up, z backward\)\. .* Negate": {"pose": lambda pose: pose @ FLIP},
    "world-to-camera, with OpenGL's axes": {"pose": lambda pose: torch.linalg.inv(pose @ FLIP)},
    r"depth has another unit .* times 0\.001 it agrees\. .*`depth_units`.* 1000 times as large": {
        "depth": lambda depth: depth * 1000
    },
    r"times 1000 it agrees\. .*1000 times as small": {"depth": lambda depth: depth / 1000},
    r"times 5 it agrees\. .*5 times as small": {"depth": lambda depth: depth / 5},
    r"world-to-camera, and depth has another unit.*times 0\.001": {
        "pose": torch.linalg.inv,
        "depth": lambda depth: depth * 1000,
    },
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_scene_passes(seed: int) -> None:
    agreement = check_geometry(rendered_scene(seed, 8, (48, 64)))
    assert agreement.share > 0.8
    assert agreement.points > 1000
    assert agreement.pairs > 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_found_and_named(message: str, seed: int) -> None:
    scene = mistaken(rendered_scene(seed, 8, (48, 64)), **MISTAKES[message])
    with pytest.raises(SceneError, match=message) as error:
        check_geometry(scene)
    assert f"room_{seed:04d}" in str(error.value)


def test_the_figures_are_told() -> None:
    scene = mistaken(rendered_scene(0, 8, (48, 64)), pose=torch.linalg.inv)
    with pytest.raises(
        SceneError, match=r"\d+% of the depth is where it should be as given, and 9\d% with that mended"
    ):
        check_geometry(scene)


def test_nothing_is_said_where_a_mistake_would_show_nowhere() -> None:
    """A camera that stands still has the same pose either way, and no baseline to measure a unit with."""
    still = rendered_scene(0, 1, (48, 64)).views[0]
    scene = Scene("still", "here", tuple(replace(still, name=str(i)) for i in range(4)))
    assert check_geometry(scene).share == 1


def test_poses_of_other_pictures_are_told() -> None:
    scene = rendered_scene(1, 8, (48, 64))
    poses = [view.pose for view in scene.views]
    shuffled = [poses[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)]
    mixed = replace(scene, views=tuple(replace(v, pose=p) for v, p in zip(scene.views, shuffled, strict=True)))
    with pytest.warns(GeometryWarning, match=r"only \d+% of what one view should see of another"):
        agreement = check_geometry(mixed)
    assert agreement.share < 0.2


def test_views_that_share_nothing_give_no_figure() -> None:
    scene = rendered_scene(1, 2, (48, 64))
    far = torch.eye(4, dtype=torch.float64)
    far[0, 3] = 500
    apart = replace(scene, views=(scene.views[0], replace(scene.views[1], pose=far @ scene.views[1].pose)))
    assert check_geometry(apart).share is None


@pytest.mark.parametrize(("factor", "guess"), [(1000, "in millimetres"), (1e-3, "divided by 1000 once too often")])
def test_without_poses_the_unit_is_judged_by_what_a_camera_can_measure(factor: float, guess: str) -> None:
    scene = rendered_scene(1, 3, (48, 64))
    bare = replace(scene, views=tuple(replace(view, pose=None) for view in scene.views))
    assert check_geometry(bare).share is None
    with pytest.raises(SceneError, match=f"half of its depth is beyond .* It seems to be {guess}"):
        check_geometry(mistaken_without_poses(bare, factor))


def mistaken_without_poses(scene: Scene, factor: float) -> Scene:
    return replace(
        scene,
        views=tuple(replace(view, read_depth=lambda view=view: view.depth() * factor) for view in scene.views),
    )


def with_intrinsics(scale: float) -> Scene:
    scene = rendered_scene(1, 3, (48, 64))
    return replace(
        scene,
        views=tuple(
            replace(
                view, intrinsics=torch.diag(torch.tensor([scale, scale, 1.0], dtype=torch.float64)) @ view.intrinsics
            )
            for view in scene.views
        ),
    )


def test_intrinsics_of_a_larger_picture_are_refused() -> None:
    with pytest.raises(SceneError, match=r"lies outside the picture of 64x48\. .* a picture of about 158x118"):
        check_geometry(with_intrinsics(2.5))


def test_intrinsics_of_a_smaller_picture_are_told() -> None:
    with pytest.warns(GeometryWarning) as told:
        check_geometry(with_intrinsics(0.5))
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2
    assert "look like those of a picture of about 32x24. So do those of 2 other views." in texts[0]
    assert "depth of its views disagrees" in texts[1]


def test_what_is_not_known_is_not_checked() -> None:
    assert check_geometry(Scene.from_arrays(torch.zeros(2, 3, 4, 4))).share is None
    empty = Scene.from_arrays(
        torch.zeros(2, 3, 4, 4),
        torch.zeros(2, 4, 4),
        torch.tensor([[4, 0, 2.0], [0, 4, 2], [0, 0, 1]]),
        torch.eye(4).expand(2, 4, 4),
    )
    assert check_geometry(empty).share is None
