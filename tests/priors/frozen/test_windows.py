"""Long clips in overlapping windows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.small_wan import apart, close, frames, tiny

from vega3d_plugin.contracts.errors import PriorError, SettingsError
from vega3d_plugin.priors.frozen.windows import average, windows


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("size", [4, 5, 9])
@pytest.mark.parametrize("steps", [1, 4, 5, 6, 9, 10, 23, 100])
def test_windows_cover_every_step_and_overlap(steps: int, size: int, overlap: int) -> None:
    places = windows(steps, size, overlap)
    assert sorted({step for place in places for step in place}) == list(range(steps))
    assert all(len(place) == min(size, steps) for place in places)
    for first, second in pairwise(places):
        assert first.start < second.start
        assert first.stop - second.start >= overlap
    # As few as possible.
    assert len(places) == (1 if steps <= size else -(-(steps - overlap) // (size - overlap)))


@pytest.mark.parametrize("overlap", [4, 5, -1])
def test_an_overlap_that_is_none(overlap: int) -> None:
    with pytest.raises(PriorError, match="use 0 to 3"):
        windows(10, 4, overlap)


def test_the_mean_where_windows_overlap() -> None:
    parts = [torch.full((3, 2), 1.0), torch.full((3, 2), 3.0)]
    joined = average(parts, [range(0, 3), range(2, 5)])
    assert joined[:, 0].tolist() == [1, 1, 2, 3, 3]
    assert average(parts[:1], [range(3)]) is parts[0]


def test_a_long_clip_is_the_mean_of_its_windows() -> None:
    clip = frames(7)
    prior = tiny(context="views", window=4, overlap=2)
    latents = prior.encode(clip)
    from vega3d_plugin.priors.diffusion.flow_matching import draw_noise

    noise = draw_noise(tuple(latents.shape[1:]), 0, range(7))
    whole = tiny(context="views")
    places = windows(7, 4, 2)
    assert [(p.start, p.stop) for p in places] == [(0, 4), (1, 5), (3, 7)]
    parts = [whole.features(latents[p.start : p.stop], noise[p.start : p.stop]) for p in places]
    features = prior(clip)
    close(features, average(parts, places))
    # The seam: a step that two windows see is the mean of both.
    close(features[4], (parts[1][3] + parts[2][1]) / 2)
    close(features[2], (parts[0][2] + parts[1][1]) / 2)
    assert apart(features, whole(clip)) > 1e-4


def test_short_clips_are_seen_whole() -> None:
    clip = frames(4)
    close(tiny(context="views", window=4, overlap=2)(clip), tiny(context="views")(clip))


def test_a_window_is_independent_of_what_it_does_not_see() -> None:
    clip = frames(7)
    prior = tiny(context="views", window=4, overlap=0)
    other = clip.clone()
    other[4:] = 1 - other[4:]
    assert windows(7, 4, 0) == [range(0, 4), range(3, 7)]
    close(prior(other)[:3], prior(clip)[:3])
    assert apart(prior(other)[3], prior(clip)[3]) > 1e-4


def test_video_steps_are_windowed_too() -> None:
    clip = frames(17)
    windowed, whole = tiny(context="video", window=3, overlap=1), tiny(context="video")
    features = windowed(clip)
    assert features.shape == whole(clip).shape == (5, 96, 2, 3)
    assert apart(features, whole(clip)) > 1e-4


def test_windows_are_part_of_the_identity_where_they_matter() -> None:
    assert tiny(context="views", window=9).fingerprint != tiny(context="views").fingerprint
    assert tiny(context="views", overlap=2).fingerprint != tiny(context="views").fingerprint
    assert tiny(window=9).fingerprint == tiny().fingerprint


def test_an_overlap_as_large_as_the_window() -> None:
    with pytest.raises(PriorError, match="window of 4 frames cannot overlap"):
        tiny(context="views", window=4, overlap=4)
    with pytest.raises(SettingsError, match="overlap"):
        tiny(overlap=-1)
