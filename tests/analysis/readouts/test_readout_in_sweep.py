"""The depth read-out of a sweep: features that are depth are read, noise is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from judged import room
from torch import Tensor

import vega3d
from vega3d_plugin.analysis import sweep
from vega3d_plugin.analysis.contexts import judged_views
from vega3d_plugin.analysis.partners import token_places
from vega3d_plugin.analysis.readouts.in_sweep import DepthReadout
from vega3d_plugin.contracts.errors import AnalysisError
from vega3d_plugin.contracts.framing import Framing
from vega3d_plugin.scenes.scene import Scene

GRID = (9, 12)


def depth_features(scene: Scene) -> Tensor:
    """The distance of each token, in bins ``[V, 16, h, w]``."""
    maps = []
    for view in scene.views:
        framing = Framing.stretch(view.size, view.size)
        points, _ = token_places(view, view.depth(), framing, GRID)
        assert view.pose is not None
        metres = ((points - view.pose[:3, 3]) @ view.pose[:3, 2]).float()
        maps.append(torch.exp(-((metres[:, None] - torch.linspace(0.5, 8, 16)) ** 2)).T.unflatten(1, GRID))
    return torch.stack(maps)


@pytest.mark.long
def test_features_that_are_depth_are_read() -> None:
    prior = vega3d.CallablePrior(lambda frames: frames[:, :, ::8, ::8], 3, fingerprint="any")
    views = [judged_views(prior, room(seed), 6) for seed in range(4)]
    read = DepthReadout(steps=300)
    (known,) = read([depth_features(each.scene) for each in views], views, prior).values()
    generator = torch.Generator().manual_seed(0)
    (guessed,) = read([torch.randn(6, 16, *GRID, generator=generator) for _ in views], views, prior).values()
    assert known > 0.75
    assert known > guessed + 0.2


def test_a_sweep_with_the_read_out() -> None:
    settings = vega3d.load_prior("tiny-wan", size=(48, 80)).settings
    result = sweep(settings, [room(seed) for seed in range(4)], taps=[0, 3], views=4, readout=DepthReadout(steps=5))
    assert list(result.readouts) == ["depth d1"]
    assert all(0 <= cell.readout["depth d1"] <= 1 for cell in result.cells)
    assert "depth d1" in result.table()


def test_scenes_that_cannot_be_read() -> None:
    prior = vega3d.CallablePrior(lambda frames: frames[:, :, ::8, ::8], 3, fingerprint="any")
    views = [judged_views(prior, room(seed), 4) for seed in range(4)]
    maps = [torch.rand(4, 3, *GRID) for _ in views]
    with pytest.raises(AnalysisError, match="at least 4 scenes"):
        DepthReadout()(maps[:3], views[:3], prior)
    vague = dataclasses.replace(views[1], scene=dataclasses.replace(views[1].scene, metric=False))
    with pytest.raises(AnalysisError, match="'room_0001' is known up to its scale only"):
        DepthReadout()(maps, [views[0], vague, *views[2:]], prior)
