"""Clips and the split: views in order and apart, scenes on one side only."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from vega3d_plugin.analysis.readouts.sampling import clip_truth, sample_views, split_scenes
from vega3d_plugin.analysis.readouts.truth import check_distinct, scene_truth
from vega3d_plugin.errors import AnalysisError, SceneError
from vega3d_plugin.priors.framing import Framing
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene


def whole(size: tuple[int, int]) -> Framing:
    return Framing.stretch(size, size)


@pytest.mark.parametrize("total", [4, 5, 12, 76, 200])
@pytest.mark.parametrize("start", ["any", "first"])
def test_views_of_a_clip(total: int, start: str) -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_views(range(total), rng, start) for _ in range(50)]  # type: ignore[arg-type]
    gap = max(1, round(5 / 76 * total))
    for views in drawn:
        assert len(views) == 4
        assert min(b - a for a, b in pairwise(views)) >= gap
        assert 0 <= views[0] <= views[-1] < total
    firsts = {views[0] for views in drawn}
    assert firsts == {0} if start == "first" or total == 4 else len(firsts) > 1
    if total > 4:
        assert len({tuple(views) for views in drawn}) > 2
        assert any(views[-1] == total - 1 for views in drawn) or total > 12


def test_only_candidates_are_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert set(sample_views([0, 3, 5, 9, 10], rng)) <= {0, 3, 5, 9, 10}
    with pytest.raises(AnalysisError, match="only 3 can be used"):
        sample_views([1, 2, 3], rng)


def test_the_split_is_by_scene_and_not_by_order() -> None:
    names = [f"{i:064x}" for i in range(20)]
    split = split_scenes(names, 0.25, 0)
    assert len(split.held_out) == 5
    assert sorted(split.training + split.held_out) == list(range(20))
    turned = split_scenes(names[::-1], 0.25, 0)
    assert {names[i] for i in split.held_out} == {names[::-1][i] for i in turned.held_out}
    assert split_scenes(names, 0.25, 1) != split
    assert len(split_scenes(names[:4], 0.01).held_out) == 2
    assert len(split_scenes(names[:4], 0.99).training) == 2


@pytest.mark.parametrize(("count", "share"), [(3, 0.25), (8, 0.0), (8, 1.5)])
def test_a_split_that_cannot_be(count: int, share: float) -> None:
    with pytest.raises(AnalysisError, match=r"at least 4 scenes|between 0 and 1"):
        split_scenes([str(i) for i in range(count)], share)


def test_one_scene_twice_is_told() -> None:
    scenes = [rendered_scene(seed, 4, (16, 16)) for seed in (0, 1, 0)]
    check_distinct(scenes[:2])
    with pytest.raises(AnalysisError, match="same content"):
        check_distinct(scenes)


def plane(depth: float = 2.0, size: tuple[int, int] = (20, 30), holes: bool = False) -> Scene:
    """A wall ahead of cameras that move to the right, a metre a view."""
    maps = torch.full((5, *size), depth)
    if holes:
        maps[3:] = 0
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.arange(5.0)
    matrix = torch.tensor([[15.0, 0, 14.5], [0, 15, 9.5], [0, 0, 1]])
    return Scene.from_arrays(torch.rand(5, 3, *size), maps, matrix, poses, name="wall")


def test_truth_of_a_wall() -> None:
    truth = scene_truth(plane(), whole, (4, 6))
    assert truth.depth.shape == (5, 4, 6)
    assert torch.allclose(truth.depth, torch.tensor(2.0, dtype=torch.float64))
    # Token centres lie at 2.5, 7.5 ... pixels from the left edge: (u - 15) / 15 * 2 metres from the axis.
    assert truth.points[0, 0, :, 0].tolist() == pytest.approx(
        [(u - 15) / 15 * 2 for u in (2.5, 7.5, 12.5, 17.5, 22.5, 27.5)]
    )
    assert truth.points[3, 0, 0, 0] - truth.points[0, 0, 0, 0] == pytest.approx(3)
    assert truth.cameras[:, 0].tolist() == [0, -1, -2, -3, -4]
    assert truth.cameras[0, 7:].tolist() == pytest.approx([2 * np.arctan(10 / 15), 2 * np.arctan(15 / 15)], abs=1e-6)


def test_truth_follows_the_crop() -> None:
    """A prior that sees the middle square sees its field of view and its places only."""
    truth = scene_truth(plane(), lambda size: Framing.crop(size, (40, 40)), (4, 4))
    assert truth.points[0, 0, :, 0].tolist() == pytest.approx([(u - 15) / 15 * 2 for u in (7.5, 12.5, 17.5, 22.5)])
    assert truth.cameras[0, 8] == pytest.approx(2 * np.arctan(10 / 15), abs=1e-6)


def test_truth_of_a_clip_begins_at_its_first_camera() -> None:
    truth = scene_truth(plane(), whole, (4, 6))
    clip = clip_truth(truth, [1, 2, 4])
    unit = float(truth.points[0].norm(dim=-1).mean())
    assert clip.extrinsics[0].tolist() == torch.eye(3, 4).tolist()
    assert clip.cameras[:, 0].tolist() == pytest.approx([0, -1 / unit, -3 / unit], abs=1e-6)
    assert clip.cameras[0, 3:7].tolist() == [0, 0, 0, 1]
    assert float(clip.points[0].norm(dim=-1).mean()) == pytest.approx(1, abs=1e-6)
    # One point of the wall is one point, from whichever camera.
    assert clip.points[2, 0, 0, 0] - clip.points[0, 0, 0, 0] == pytest.approx(3 / unit, abs=1e-5)
    assert clip.depth.unique().tolist() == pytest.approx([2 / unit])


def test_views_without_depth_are_not_used() -> None:
    assert scene_truth(plane(holes=True), whole, (4, 6)).usable == (0, 1, 2)
    with pytest.raises(AnalysisError, match="no view has depth"):
        scene_truth(plane(depth=0.0), whole, (4, 6))
    blind = Scene.from_arrays(torch.rand(5, 3, 20, 30), name="blind")
    with pytest.raises(SceneError, match="lacks depth"):
        scene_truth(blind, whole, (4, 6))
