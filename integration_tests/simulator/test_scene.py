"""A task's rendered views: pictures, depth and cameras belong together, and are what the simulator itself shows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from simulator.tasks import environment_of, needs_libero
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import SceneError, UnknownNameError
from vega3d_plugin.scenes.coordinates import point_map, project, visible
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.questions import corners
from vega3d_plugin.scenes.scene import Scene

pytestmark = needs_libero
TASK = "libero:libero_spatial/0"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return open_scene(f"{TASK}?views=5&size=160x200&seed=0")


@pytest.fixture(scope="module")
def policy() -> Scene:
    return open_scene(f"{TASK}?cameras=policy&size=128x128&wait=0")


def seen_again(scene: Scene, one: int, two: int, tolerance: float) -> float:
    """The share of what one view shows of the table that the other sees at the same depth, in metres."""
    view, other = scene.views[one], scene.views[two]
    # Where neither hides anything: not the robot, the walls, the floor.
    points = point_map(view)
    table = (points.points[..., 2] > 0.88) & (points.points[..., 2] < 0.905)
    pixels, away = project(points.points[table], other.intrinsics, other.pose)
    height, width = other.size
    u, v = pixels.round().long().unbind(-1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    depth = other.depth()[v[inside], u[inside]]
    # What is nearer hides the table.
    free = depth > away[inside] - 0.03
    assert int(free.sum()) > 300
    return float(((depth - away[inside]).abs()[free] < tolerance).float().mean())


@pytest.mark.parametrize(("one", "two"), [(0, 1), (1, 3), (4, 0)])
def test_a_point_of_one_camera_is_where_another_sees_it(scene: Scene, one: int, two: int) -> None:
    # A pixel of the table is up to 1.5 cm long, seen at a slant; at its objects, neighbours are elsewhere.
    assert seen_again(scene, one, two, 0.015) > 0.94


def test_a_wrong_camera_would_be_seen(scene: Scene) -> None:
    moved = scene.views[1].pose.clone()
    moved[2, 3] -= 0.06
    wrong = replace(scene, views=(scene.views[0], replace(scene.views[1], pose=moved), *scene.views[2:]))
    assert seen_again(wrong, 0, 1, 0.015) < 0.5


def test_objects_are_where_their_pixels_are(scene: Scene) -> None:
    names = [thing.name for thing in scene.objects]
    assert names.count("akita black bowl") == 2
    assert {"plate", "cookies", "wooden cabinet", "flat stove"} <= set(names)
    for number, thing in enumerate(scene.objects):
        box = torch.from_numpy(corners(thing)).float()
        low, high = box.min(dim=0).values - 0.01, box.max(dim=0).values + 0.01
        shown = torch.cat([point_map(view).points[view.instances() == number] for view in scene.views])
        assert len(shown) > 20, thing.name
        assert bool(((shown > low) & (shown < high)).all(dim=1).float().mean() > 0.97), thing.name
        # And the box is no larger than what it holds: bowls and plate are seen whole from above.
        if thing.name in ("akita black bowl", "plate"):
            assert torch.allclose(shown[:, :2].max(dim=0).values, high[:2] - 0.01, atol=0.02)


def test_the_policys_cameras_show_what_the_simulator_shows(policy: Scene) -> None:
    """The same pictures and the same depth as LIBERO's own observations, which lie upside down."""
    from robosuite.utils.camera_utils import get_real_depth_map

    environment = environment_of("libero_spatial", 0, size=128, depth=True)
    try:
        shown = environment.regenerate_obs_from_state(environment.state)
        for view in policy.views:
            picture = torch.from_numpy(shown[f"{view.name}_image"][::-1].copy()).permute(2, 0, 1).float() / 255
            assert torch.equal((view.frame() * 255).round(), (picture * 255).round())
            depth = get_real_depth_map(environment.sim, shown[f"{view.name}_depth"])[::-1, :, 0]
            # At edges, the simulator's depth is that of several points of a pixel.
            close = np.abs(view.depth().numpy() - depth) < 0.01 * depth
            assert close.mean() > 0.95
    finally:
        environment.close()


def test_the_two_cameras_see_the_same_table(policy: Scene) -> None:
    hand, table = policy.views[1], policy.views[0]
    seen, _ = visible(point_map(hand).points, table, tolerance=0.03)
    points = point_map(hand).points[seen]
    assert len(points) > 2000
    assert bool(((points[:, 2] > 0.85) & (points[:, 2] < 1.27)).float().mean() > 0.9)


def test_the_same_address_is_the_same_scene(scene: Scene) -> None:
    assert open_scene(f"{TASK}?views=5&size=160x200").fingerprint == scene.fingerprint
    assert open_scene(f"{TASK}?views=5&size=160x200&state=1").fingerprint != scene.fingerprint


def test_scene_info() -> None:
    result = CliRunner().invoke(app, ["scene", "info", f"{TASK}?views=3&size=96x96", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["known"] == ["depth", "intrinsics", "poses", "alignment", "instances"]
    assert values["agreement"] > 0.5
    assert values["objects"]["akita black bowl"] == 2


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("libero:libero_spacial/0", UnknownNameError, "Did you mean 'libero_spatial'"),
        ("libero:libero_spatial/10", SceneError, "has 10 tasks, 0 to 9"),
        (f"{TASK}?state=50", SceneError, "has 50 initial states"),
    ],
)
def test_what_is_not_there(address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_scene(address)
