"""What judges small-world: features of known worth score what they are worth."""

from __future__ import annotations

import stereo_pair
import torch
from small_world.measure import MovedPoints, controls
from small_world.model import build_transformer
from small_world.readout import depth_score, positions
from small_world.sampling import _best_shift, sample
from small_world.worlds import WorldSettings, draw_worlds
from torch import Tensor

GLOBAL = WorldSettings(layers=(0, 0), slant=0.0, zoom=0.0, motion=(6.0, 6.0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_features_that_know_where_points_go_find_all_of_them_and_noise_few() -> None:
    points = MovedPoints(GLOBAL, count=16, seed=3)
    assert int(points.counted.sum()) > 300
    # Waves over the place in the world: the first frame's where its tokens go, the second's where its tokens are.
    frequencies = normal(2, 64, seed=1) * 0.3
    places = torch.stack([points.targets, points.centres.expand_as(points.targets)], dim=1)
    known = torch.cat([(places @ frequencies).sin(), (places @ frequencies).cos()], dim=-1)
    assert points.recall(known) == 1.0
    assert points.recall(normal(16, 2, 64, 32)) < 0.2
    assert points.share(points.near(points.centres.expand_as(points.targets))) == 0.0


def test_noise_lowers_what_pixels_find() -> None:
    points = MovedPoints(GLOBAL, count=16, seed=3)
    shares = [points.recall(points.patches(points.noisy((level, level))[0])) for level in (0.0, 0.3, 1.0)]
    assert shares[0] > shares[1] + 0.1 > shares[2] + 0.2


def test_levels_are_those_of_the_frames() -> None:
    points = MovedPoints(WorldSettings(frames=3), count=2, seed=3)
    noisy, sigmas = points.noisy((0.0, 0.5))
    assert sigmas.tolist() == [[0.0, 0.0, 0.5]] * 2
    assert torch.equal(noisy[:, :, :2], points.latents[:, :, :2])
    torch.testing.assert_close(noisy[:, :, 2], 0.5 * points.latents[:, :, 2] + 0.5 * points.noise[:, :, 2])


def test_controls_are_told() -> None:
    points = MovedPoints(GLOBAL, count=4, seed=3)
    told = controls(points, (0.3, 0.3), width=32, blocks=2)
    assert len(told["twins"]) == 2
    assert told["same_position"] == 0.0
    assert 0 < told["pixels"] <= told["clean_pixels"] <= 1


def test_depth_is_read_out_where_it_is_and_not_where_it_is_not() -> None:
    points = MovedPoints(count=30, seed=5)
    noise = normal(30, 64, 8)
    told = torch.cat([noise, points.depths[..., None] + 0.01 * noise[..., :1]], dim=-1)
    assert depth_score(told, points.depths) > 0.95
    assert depth_score(noise, points.depths) < 0.05
    assert depth_score(positions(points), points.depths) < 0.3


def test_one_shift_explains_a_world_without_depth_and_not_one_with_it() -> None:
    def error(settings: WorldSettings) -> float:
        truth = draw_worlds(settings, 6, seed=2).render()
        return _best_shift(truth, torch.zeros(6, 2, 24, 24))[0]

    flat = WorldSettings(frames=4, layers=(0, 0), slant=0.0, zoom=0.0, motion=(2.0, 3.0), whole=1)
    layered = WorldSettings(frames=4, layers=(2, 3), motion=(2.0, 3.0))
    assert error(flat) < 0.3 * error(layered)


def test_sampled_frames_follow_the_given_ones_which_stay() -> None:
    transformer = build_transformer(width=32, blocks=1, seed=1)
    given, noise = normal(2, 3, 1, 6, 6), normal(2, 3, 3, 6, 6, seed=4)
    clip = sample(transformer, noise, given, steps=3)
    assert torch.equal(clip[:, :, :1], given)
    assert not torch.equal(clip[:, :, 1:], sample(transformer, noise, -given, steps=3)[:, :, 1:])


def test_what_the_right_picture_hides() -> None:
    disparity = torch.tensor([[1.0, 1.0, 1.0, 3.0, 1.0, torch.inf]])
    # Pixel 3 lands on column 0 and hides pixel 1, which lands there, too; pixel 0 leaves the picture.
    assert stereo_pair.seen_right(disparity).tolist() == [[False, False, True, True, True, False]]
