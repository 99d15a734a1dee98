"""Scenes and priors that are judged in tests: rooms, and features whose score is known beforehand."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vega3d_plugin.analysis.partners import token_places
from vega3d_plugin.priors.framing import Framing
from vega3d_plugin.priors.function import CallablePrior
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene

#: (height, width) of the frames, and (h, w) of the maps of priors that see them whole.
SIZE, GRID = (72, 96), (9, 12)
WAVES = (0.25, 0.5, 1.0)


@cache
def room(seed: int = 0, views: int = 12) -> Scene:
    """A rendered room whose pictures are kept, so that it is rendered once."""
    scene = rendered_scene(seed, views, SIZE)
    depth = torch.stack([view.read_depth() for view in scene.views if view.read_depth])
    intrinsics = scene.views[0].intrinsics
    return Scene.from_arrays(scene.frames(), depth, intrinsics, scene.poses, name=scene.name, source=scene.source)


def picked(scene: Scene, count: int = 6) -> Scene:
    """A few neighbouring views."""
    return scene.select(range(count))


def world_features(scene: Scene, grid: tuple[int, int] = GRID) -> Tensor:
    """Sines and cosines of the 3D point at each token's centre ``[V, 18, h, w]``."""
    maps = []
    for view in scene.views:
        depth = view.depth()
        assert depth is not None
        points, _ = token_places(view, depth, Framing.stretch(view.size, view.size), grid)
        angles = torch.cat([points * wave for wave in WAVES], dim=-1)
        maps.append(torch.cat([angles.sin(), angles.cos()], dim=-1).T.unflatten(1, grid))
    return torch.stack(maps).float()


def giving(maps: Tensor, name: str) -> CallablePrior:
    """A prior that gives these maps, whatever it is shown."""
    return CallablePrior(lambda frames: maps, maps.shape[1], fingerprint=name)
