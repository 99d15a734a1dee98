"""A scene holds what it is given, says what it lacks, and refuses what cannot be."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from vega3d_plugin.errors import SceneError, UnknownNameError, Vega3dError
from vega3d_plugin.scenes import scene as scene_module
from vega3d_plugin.scenes.cameras import rescaled_intrinsics
from vega3d_plugin.scenes.scene import Scene, View
from vega3d_plugin.scenes.worlds import rendered_scene


def arrays(count: int = 3, size: tuple[int, int] = (8, 12), **more) -> Scene:
    generator = torch.Generator().manual_seed(count)
    given = {
        "depth": torch.rand(count, 4, 6, generator=generator) + 1,
        "intrinsics": np.array([[10.0, 0, 5.5], [0, 10.0, 3.5], [0, 0, 1]]),
        "poses": np.stack([np.eye(4)] * count),
        **more,
    }
    return Scene.from_arrays(torch.rand(count, 3, *size, generator=generator), **given)


def test_arrays_come_back_as_given() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    scene = Scene.from_arrays(
        frames, np.ones((2, 4, 6)), np.eye(3), [np.eye(4)] * 2, name="sim", names=["agent", "wrist"]
    )
    assert [view.name for view in scene.views] == ["agent", "wrist"]
    assert ((scene.frames() * 255).round().permute(0, 2, 3, 1).numpy() == frames).all()
    assert scene.views[0].depth().dtype == torch.float32
    assert scene.poses.shape == (2, 4, 4)
    assert scene.views[0].intrinsics.dtype == torch.float64
    assert scene.has_depth
    assert scene.has_poses
    assert scene.has_intrinsics


def test_a_simulator_may_reuse_its_buffer() -> None:
    buffer = torch.zeros(1, 3, 8, 12)
    scene = Scene.from_arrays(buffer)
    buffer += 1
    assert float(scene.frames().max()) == 0
    scene.views[0].frame().fill_(1)
    assert float(scene.frames().max()) == 0


def test_selection_keeps_the_order_given_and_takes_each_once() -> None:
    scene = arrays(4)
    assert [view.name for view in scene.select([3, 1, 3]).views] == ["00003", "00001"]
    with pytest.raises(SceneError, match=r"has 4 views: there is no view 4, give 0 to 3"):
        scene.select([4])
    with pytest.raises(SceneError, match="no views"):
        scene.select([])


def test_what_is_missing_is_named_all_at_once() -> None:
    scene = arrays(2, depth=None, poses=None)
    assert not scene.has_depth
    assert scene.require("intrinsics") is scene
    with pytest.raises(
        SceneError, match=r"'arrays' \(arrays\) lacks depth \(all views, first '00000'\) and pose \(all"
    ):
        scene.require("depth", "pose")
    with pytest.raises(SceneError, match="its alignment to the axes"):
        scene.require("alignment")
    with pytest.raises(UnknownNameError, match="Did you mean 'pose'"):
        scene.require("poses")
    some = replace(arrays(2), views=(arrays(2).views[0], replace(arrays(2).views[1], read_depth=None)))
    with pytest.raises(SceneError, match=r"depth \(1 of 2 views, first '00001'\)"):
        some.require("depth")


def test_the_fingerprint_follows_the_content_and_nothing_else() -> None:
    one, again = arrays(3), arrays(3)
    assert one.fingerprint == again.fingerprint
    assert len(one.fingerprint) == 32
    assert replace(one, name="x", source="y").fingerprint == one.fingerprint
    moved = np.stack([np.eye(4)] * 3)
    moved[1, 0, 3] = 1e-3
    others = [
        arrays(3, poses=moved),
        arrays(3, depth=None),
        arrays(3, depth=torch.ones(3, 4, 6)),
        arrays(3, intrinsics=np.eye(3)),
        arrays(3, alignment=np.eye(4)),
        one.select([0, 1]),
        one.select([1, 0, 2]),
    ]
    keys = {scene.fingerprint for scene in [one, *others]}
    assert len(keys) == 1 + len(others)


def test_a_scene_travels_to_another_process() -> None:
    for scene in (arrays(2), rendered_scene(1, 2, (16, 24))):
        copy = pickle.loads(pickle.dumps(scene))
        assert copy.fingerprint == scene.fingerprint
        assert torch.equal(copy.frames(), scene.frames())


def test_intrinsics_of_another_size_keep_the_corner_of_the_picture() -> None:
    view = arrays().views[0]
    half = view.intrinsics_of_depth((4, 6))
    # The picture's corner lies half a pixel before the centre of its first pixel, at any size.
    assert half.tolist() == [[5.0, 0, 2.5], [0, 5.0, 1.5], [0, 0, 1]]
    assert torch.allclose(rescaled_intrinsics(half, (4, 6), (8, 12)), view.intrinsics)
    own = replace(view, depth_intrinsics=torch.eye(3, dtype=torch.float64))
    assert torch.equal(own.intrinsics_of_depth((4, 6)), torch.eye(3, dtype=torch.float64))


POSES = {
    "expected a pose of 4x4 numbers": np.eye(3),
    "NaN or infinity": np.full((4, 4), np.nan),
    "not rigid.*scale 2": np.diag([2.0, 2, 2, 1]),
    "not rigid": np.array([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    "left-handed": np.diag([-1.0, 1, 1, 1]),
    "last row.*transposed": np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 3, 4, 1]]),
    r"1e\+09, over": np.array([[1.0, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("message", POSES)
def test_poses_that_cannot_be(message: str) -> None:
    poses = POSES[message]
    with pytest.raises(SceneError, match=message) as error:
        arrays(1, poses=poses[None])
    if poses.shape == (4, 4):
        assert "View '00000', pose" in str(error.value)


INTRINSICS = {
    "expected intrinsics of 3x3 or 4x4": np.eye(2),
    "focal lengths must be positive": np.diag([0.0, 5, 1]),
    "transposed or normalised": np.array([[5.0, 0, 0], [0, 5, 0], [2, 2, 1]]),
    "NaN or infinity": np.full((3, 3), np.inf),
}


@pytest.mark.parametrize("message", INTRINSICS)
def test_intrinsics_that_cannot_be(message: str) -> None:
    with pytest.raises(SceneError, match=message):
        arrays(1, intrinsics=INTRINSICS[message][None])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"depth": np.ones((2, 4, 6))}, r"3 frames, but depth of shape \[2, 4, 6\]"),
        ({"poses": np.eye(4)}, "3 frames, but poses"),
        ({"names": ["a"]}, "3 frames, but 1 names"),
        ({"names": ["a", "b", "a"]}, "two views with the name 'a'"),
        ({"depth": [["far"]]}, "no tensor or array of numbers"),
        ({"alignment": np.diag([1.0, 1, -1, 1])}, "alignment: the pose is left-handed"),
    ],
)
def test_arrays_that_do_not_fit(more: dict, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        arrays(3, **more)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 3, 8, 8), np.uint8), torch.full((1, 3, 4, 4), 7.0), np.zeros((0, 8, 8, 3))]
)
def test_frames_that_are_none(frames) -> None:
    with pytest.raises(Vega3dError):
        Scene.from_arrays(frames)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_depth_that_cannot_be_is_told_when_it_is_read(value: float) -> None:
    depth = torch.ones(1, 4, 4)
    depth[0, 2, 2] = value
    scene = arrays(1, depth=depth)
    with pytest.raises(SceneError, match="View '00000': depth holds negative values, NaN or infinity"):
        scene.views[0].depth()


def test_a_picture_that_changed_its_size_since() -> None:
    view = View("a", (4, 4), lambda: torch.zeros(3, 5, 4))
    with pytest.raises(SceneError, match=r"is \[3, 5, 4\], \[3, 4, 4\] was told"):
        view.frame()


def test_pictures_of_different_sizes_are_not_one_clip() -> None:
    views = tuple(
        View(name, size, lambda size=size: torch.zeros(3, *size)) for name, size in (("a", (4, 4)), ("b", (4, 6)))
    )
    with pytest.raises(SceneError, match="'a' is 4x4, 'b' is 6x4"):
        Scene("s", "here", views).frames()


def test_the_known_parts_are_those_of_the_type() -> None:
    assert set(scene_module._KNOWN) == {"depth", "pose", "intrinsics", "alignment"}
