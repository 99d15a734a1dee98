"""Rendered worlds: where a point is in another frame, and whether it is seen there, is exact."""

from __future__ import annotations

import math

import pytest
import torch
from small_world.worlds import FOCAL, Worlds, WorldSettings, draw_worlds
from torch import Tensor

EVERYTHING = WorldSettings(size=12, frames=3, layers=(2, 3), motion=(1.0, 4.0), slant=0.3, zoom=0.2)


def meet(worlds: Worlds, index: int, camera: Tensor, ray: tuple[float, float]) -> tuple[int, list[float]]:
    """The nearest plane on one ray and the point on it, plane by plane, in plain arithmetic."""
    best, found = math.inf, (-1, [0.0, 0.0, 0.0])
    x, y, z = (float(value) for value in camera)
    for layer in range(worlds.normals.shape[1]):
        a, b, c = (float(value) for value in worlds.normals[index, layer])
        depth = (1 - a * x - b * y - c * z) / (a * ray[0] + b * ray[1] + c)
        point = [x + depth * ray[0], y + depth * ray[1], z + depth]
        places = [FOCAL * value * c for value in point[:2]]
        spread = sum(
            ((place - float(worlds.centres[index, layer, i])) / float(worlds.radii[index, layer, i])) ** 4
            for i, place in enumerate(places)
        )
        if 0 < depth < best and spread < 1:
            best, found = depth, (layer, point)
    return found


def test_correspondence_is_that_of_rays_followed_one_by_one() -> None:
    worlds = draw_worlds(EVERYTHING, 3, seed=4)
    positions, seen = worlds.follow(0, 2)
    size, states = worlds.size, set()
    for index in range(3):
        for row in range(size):
            for column in range(size):
                ray = (((column + 0.5) / size - 0.5) / FOCAL, ((row + 0.5) / size - 0.5) / FOCAL)
                layer, point = meet(worlds, index, worlds.cameras[index, 0], ray)
                x, y, z = (a - float(b) for a, b in zip(point, worlds.cameras[index, 2], strict=True))
                there, _ = meet(worlds, index, worlds.cameras[index, 2], (x / z, y / z))
                place = [(FOCAL * value / z + 0.5) * size for value in (x, y)]
                visible = there == layer and all(0 < value < size for value in place)
                pixel = row * size + column
                assert positions[index, pixel].tolist() == pytest.approx(place, abs=1e-3)
                assert bool(seen[index, pixel]) == visible
                states.add((visible, all(0 < value < size for value in place)))
    assert states == {(True, True), (False, True), (False, False)}, "seen, hidden and outside must all occur"


def test_a_point_has_one_colour_in_all_frames() -> None:
    worlds = draw_worlds(EVERYTHING, 8, seed=5)
    frames = worlds.render().flatten(3)
    positions, seen = worlds.follow(0, 1)
    rays = torch.cat([(positions / worlds.size - 0.5) / FOCAL, torch.ones_like(positions[..., :1])], dim=-1)
    colours = worlds.colours_at(worlds.cameras[:, 1:2], rays[:, None])[:, 0]
    error = (colours - frames[:, 0].transpose(1, 2)).abs().amax(-1)
    assert float(error[seen].max()) < 1e-3
    assert float(error[~seen].mean()) > 0.05


def test_the_background_moves_as_asked_and_near_planes_by_their_nearness() -> None:
    flat = WorldSettings(size=24, layers=(1, 1), motion=(3.0, 3.0), slant=0.0, zoom=0.0)
    worlds = draw_worlds(flat, 4, seed=1)
    positions, _ = worlds.follow(0, 1)
    start, _ = worlds.follow(0, 0)
    moved = (positions - start).norm(dim=-1)
    depth = worlds.depths()[:, 0].flatten(1)
    assert float((moved * depth - 3.0).abs().max()) < 1e-3
    assert float(depth.min()) < 0.9 < float(depth.max()) == 1.0


def test_whole_steps() -> None:
    settings = WorldSettings(motion=(0.0, 6.0), whole=3)
    shift = draw_worlds(settings, 50, seed=2).cameras[:, 1, :2] * settings.size * FOCAL
    assert float((shift / 3 - (shift / 3).round()).abs().max()) < 1e-5
    assert len(shift.round().unique(dim=0)) > 5


def test_worlds_come_from_their_seed() -> None:
    first, again, other = (draw_worlds(EVERYTHING, 2, seed=seed).render() for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 3, 3, 12, 12)
    assert 0 <= float(first.min()) < 0.3 < 0.7 < float(first.max()) <= 1
