"""What each control is made of."""

from __future__ import annotations

import pytest
import read_scenes
import torch
import torch.nn.functional as F
from torch import Tensor

from vega3d_plugin.analysis.controls import Absent
from vega3d_plugin.analysis.readouts.sampling import Split
from vega3d_plugin.analysis.readouts.sources import Sampling, ShownScenes
from vega3d_plugin.errors import AnalysisError
from vega3d_plugin.priors.function import CallablePrior

SPLIT = Split((0, 2, 3), (1, 4))


@pytest.fixture
def shown() -> ShownScenes:
    prior = read_scenes.giving(read_scenes.answers, range(5), "answers")
    return ShownScenes(prior, read_scenes.rooms(5), SPLIT, Sampling(6, 400, 0))


def maps(shown: ShownScenes, control: str) -> list[Tensor]:
    found = shown.features(control)
    assert not isinstance(found, Absent)
    assert len(found) == 5
    assert all(each.shape[0] == 6 for each in found)
    assert all(tuple(each.shape[-2:]) == read_scenes.GRID for each in found)
    return found


def test_other_scenes_stay_on_their_side_of_the_split(shown: ShownScenes) -> None:
    own, moved = maps(shown, "itself"), maps(shown, "other scenes")
    where = [next(j for j in range(5) if torch.equal(own[j], each)) for each in moved]
    assert where == [2, 4, 3, 0, 1]


def test_noise_tells_neither_the_scene_nor_the_number_of_the_view(shown: ShownScenes) -> None:
    found = maps(shown, "random")
    assert all(not torch.equal(found[i][v], found[j][v]) for i in range(5) for j in range(i) for v in range(6))
    assert all(torch.equal(a, b) for a, b in zip(found, maps(shown, "random"), strict=True))


def test_positions_are_the_same_everywhere(shown: ShownScenes) -> None:
    found = maps(shown, "position only")
    assert all(torch.equal(each[v], found[0][0]) for each in found for v in range(6))


def test_pixels_are_those_of_the_token(shown: ShownScenes) -> None:
    frames = read_scenes.room(3).frames()
    means = F.adaptive_avg_pool2d(frames, read_scenes.GRID)[2].flatten(1)
    found = maps(shown, "pixels")[3][2].unflatten(0, (3, 16)).mean(dim=1).flatten(1)
    # Parts of a token overlap where its side is no multiple of four, so that means agree only nearly.
    assert float(torch.corrcoef(torch.stack([found.flatten(), means.flatten()]))[0, 1]) > 0.97
    assert float(torch.corrcoef(torch.stack([found.flip(1).flatten(), means.flatten()]))[0, 1]) < 0.9


def test_a_prior_without_modules_has_no_twin(shown: ShownScenes) -> None:
    found = shown.features("untrained twin")
    assert isinstance(found, Absent)
    assert "no untrained twin" in found.reason


def test_maps_of_several_sizes_are_told() -> None:
    scenes = read_scenes.rooms(5)
    levels = sorted(float(scene.views[0].frame()[0, 0, 0]) for scene in scenes)
    threshold = (levels[0] + levels[-1]) / 2
    prior = CallablePrior(
        lambda frames: frames[:, :, ::6, ::6] if float(frames[0, 0, 0, 0]) > threshold else frames[:, :, ::3, ::6],
        3,
        fingerprint="two sizes",
    )
    with pytest.raises(AnalysisError, match="differ in size between scenes"):
        ShownScenes(prior, scenes, SPLIT, Sampling(6, 400, 0)).own()
