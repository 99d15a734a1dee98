"""Rendered rooms: each from its seed, full of different things, and true in every number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from vega3d_plugin.errors import SettingsError
from vega3d_plugin.scenes.coordinates import point_map, point_maps, visible
from vega3d_plugin.scenes.worlds import rendered_scene
from vega3d_plugin.scenes.worlds.furniture import KINDS, Workshop
from vega3d_plugin.scenes.worlds.room import build_room
from vega3d_plugin.scenes.worlds.solids import Solid
from vega3d_plugin.scenes.worlds.textures import PATTERNS, Material

SEEDS = range(12)
GREY = Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, 0)


def test_the_same_seed_gives_the_same_room_and_another_another() -> None:
    one, again, other = (rendered_scene(seed, 3, (24, 32)) for seed in (5, 5, 6))
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint
    assert (one.frames() - other.frames()).abs().mean() > 0.1


def test_more_views_sample_the_same_way_more_finely() -> None:
    few, many = rendered_scene(7, 4, (24, 32)), rendered_scene(7, 7, (24, 32))
    assert torch.allclose(few.poses, many.poses[::2])
    assert torch.equal(few.views[1].frame(), many.views[2].frame())


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_fits_together(seed: int) -> None:
    scene = rendered_scene(seed, 4, (48, 64))
    room = build_room(seed)
    scene.require("depth", "pose", "intrinsics", "alignment")
    maps = point_maps(scene)
    assert maps.valid.all()
    # Every point lies in the room, up to the rounding of 32 bits.
    assert (maps.points > -1e-3).all()
    assert (maps.points < torch.from_numpy(room.size) + 1e-3).all()
    # The camera stands in free space.
    eyes = scene.poses[:, :3, 3].numpy()
    assert (eyes > 0.1).all()
    assert (eyes < room.size - 0.1).all()
    assert min(float(view.depth().min()) for view in scene.views) > 0.05
    for view in scene.views:
        frame = view.frame()
        # There is something to see: neither black nor burnt out nor flat.
        assert 0.1 < float(frame.mean()) < 0.8
        assert float(frame.std()) > 0.05


def test_instances_lie_in_the_boxes_of_their_objects() -> None:
    found = 0
    for seed in SEEDS:
        scene = rendered_scene(seed, 3, (48, 64))
        for view in scene.views:
            points, owners = point_map(view).points.double().numpy(), view.instances().numpy()
            for index in np.unique(owners[owners >= 0]):
                thing = scene.objects[index]
                yaw = thing.angles[0]
                turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
                local = (points[owners == index] - thing.centre) @ turn
                assert (np.abs(local) <= np.array(thing.size) / 2 + 1e-4).all(), (seed, thing)
                found += 1
    assert found > 100


def test_views_overlap_and_the_overlap_is_seen_truly() -> None:
    """Colours agree where depth says that two views see one point: the picture and the geometry are one thing."""
    differences, shares = [], []
    for seed in SEEDS:
        scene = rendered_scene(seed, 8, (96, 128))
        one, two = scene.views[2], scene.views[3]
        seen, pixels = visible(point_map(one).points, two, tolerance=0.01)
        u, v = pixels[seen].round().long().T
        there = two.frame()[:, v, u]
        shares.append(float(seen.float().mean()))
        differences.append(float((one.frame()[:, seen] - there).abs().mean()))
    assert np.mean(shares) > 0.4
    assert np.mean(differences) < 0.08


def test_rooms_hold_many_kinds_of_things() -> None:
    kinds = Counter(thing.name for seed in range(20) for thing in build_room(seed).objects)
    assert set(KINDS) <= set(kinds)
    assert {"door", "window", "painting"} <= set(kinds)
    assert all(len(build_room(seed).objects) >= 10 for seed in range(20))
    patterns = {solid.material.pattern for seed in range(20) for solid in build_room(seed).solids}
    assert patterns == set(PATTERNS)
    assert {solid.shape for seed in range(20) for solid in build_room(seed).solids} == {"box", "cylinder", "ellipsoid"}


def test_furniture_stands_on_the_floor_and_does_not_overlap() -> None:
    for name in KINDS:
        piece = Workshop(np.random.default_rng(3)).build(name)
        low, high = piece.bounds
        assert abs(low[2]) < 0.02, name
        assert (high - low < 2.3).all(), name
    for seed in SEEDS:
        standing = [thing for thing in build_room(seed).objects if thing.name in KINDS]
        boxes = []
        for thing in standing:
            c, s = abs(np.cos(thing.angles[0])), abs(np.sin(thing.angles[0]))
            half = np.array([c * thing.size[0] + s * thing.size[1], s * thing.size[0] + c * thing.size[1]]) / 2
            boxes.append((np.array(thing.centre[:2]) - half, np.array(thing.centre[:2]) + half))
        for i, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:i]:
                assert (low > other_high).any() or (other_low > high).any(), seed


RAYS = {
    # The shape, a ray from x = -5 along +x at (y, z), how far it goes; None where it misses.
    ("box", 0.0, 0.0): 5 - 1.0,
    ("box", 1.9, 0.0): 5 - 1.0,
    ("box", 2.1, 0.0): None,
    ("ellipsoid", 0.0, 0.0): 5 - 1.0,
    ("ellipsoid", 0.0, 1.5): 5 - np.sqrt(0.75),
    ("ellipsoid", 1.9, 2.0): None,
    ("cylinder", 0.0, 2.9): 5 - 1.0,
    ("cylinder", 1.0, 0.0): 5 - np.sqrt(0.75),
    ("cylinder", 0.0, 3.1): None,
}


@pytest.mark.parametrize(("shape", "y", "z"), RAYS)
def test_where_rays_meet_solids(shape: str, y: float, z: float) -> None:
    solid = Solid(shape, (0, 0, 0), (1, 2, 3), 0.0, GREY, 0)
    met = solid.meet(np.array([-5.0, y, z]), np.array([[1.0], [0], [0]]))[0]
    expected = RAYS[shape, y, z]
    assert met == pytest.approx(expected) if expected is not None else np.isinf(met)
    # The same, turned a quarter and moved, by a ray that is twice as long.
    turned = Solid(shape, (10, 20, 30), (1, 2, 3), np.pi / 2, GREY, 0)
    met = turned.meet(np.array([10.0 - y, 20 - 5, 30 + z]), np.array([[0.0], [2], [0]]))[0]
    assert met == pytest.approx(expected / 2) if expected is not None else np.isinf(met)


def test_a_cylinder_has_a_top() -> None:
    solid = Solid("cylinder", (0, 0, 0), (1, 1, 3), 0.4, GREY, 0)
    assert solid.meet(np.array([0.5, 0, 9.0]), np.array([[0.0], [0], [-1]]))[0] == pytest.approx(6)
    assert np.isinf(solid.meet(np.array([0.8, 0.8, 9.0]), np.array([[0.0], [0], [-1]]))[0])
    assert solid.normals(np.array([[0.5], [0], [3.0]])).ravel().tolist() == [0, 0, 1]
    assert np.allclose(solid.normals(np.array([[1.0], [0], [1.0]])).ravel(), [1, 0, 0])


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_patterns_are_fixed_and_within_range(name: str) -> None:
    points = np.random.default_rng(0).uniform(-4, 4, (3, 2000)).astype(np.float32)
    normals = np.tile(np.array([[0.0], [0], [1]], np.float32), (1, 2000))
    material = Material(name, (0.2, 0.4, 0.6), (0.9, 0.7, 0.5), 0.2, 17)
    colours = material.paint(points, normals)
    assert np.array_equal(colours, material.paint(points, normals))
    assert colours.dtype == np.float32
    assert colours.min() >= 0
    assert colours.max() < 1.4
    assert colours.std(axis=1).min() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"views": 0}, "views is 0"),
        ({"size": (8, 64)}, r"size is \(8, 64\)"),
        ({"size": (64, 10**6)}, "16 to 4096"),
    ],
)
def test_rooms_that_cannot_be_rendered(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        rendered_scene(**options)
