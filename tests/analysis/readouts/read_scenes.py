"""Scenes that are read out in tests, and priors whose features are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from vega3d_plugin.analysis.readouts.sampling import clip_truth
from vega3d_plugin.analysis.readouts.truth import SceneTruth, scene_truth
from vega3d_plugin.clips import clip_key
from vega3d_plugin.priors.framing import Framing
from vega3d_plugin.priors.function import CallablePrior
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene

SIZE, GRID, VIEWS = (24, 36), (4, 6), 6


def whole(size: tuple[int, int]) -> Framing:
    return Framing.stretch(size, size)


@cache
def room(seed: int) -> Scene:
    """A rendered room whose pictures are kept, so that it is rendered once."""
    scene = rendered_scene(seed, VIEWS, SIZE)
    depth = torch.stack([view.read_depth() for view in scene.views if view.read_depth])
    matrix = scene.views[0].intrinsics
    return Scene.from_arrays(scene.frames(), depth, matrix, scene.poses, name=scene.name, source=scene.source)


def rooms(count: int) -> list[Scene]:
    return [room(seed) for seed in range(count)]


@cache
def truth(seed: int, factor: int = 1) -> SceneTruth:
    return scene_truth(room(seed), whole, (GRID[0] * factor, GRID[1] * factor))


def answers(seed: int) -> Tensor:
    """Features that hold the answer: points in the first camera, depth and cameras, ``[V, 15, h, w]``."""
    scene = truth(seed)
    clip = clip_truth(scene, range(VIEWS))
    metres = scene.depth[..., None].float()
    cameras = clip.cameras[:, None, None].expand(-1, *GRID, -1)
    parts = [clip.points, clip.depth, metres, metres.clamp(min=0.1).log(), cameras]
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)


def noise(seed: int) -> Tensor:
    return torch.randn(VIEWS, 15, *GRID, generator=torch.Generator().manual_seed(seed))


def giving(make: Callable[[int], Tensor], seeds: Sequence[int], name: str) -> CallablePrior:
    """A prior that knows some rooms by their pictures and gives its own features of each."""
    table = {clip_key(room(seed).frames()): make(seed) for seed in seeds}
    return CallablePrior(lambda frames: table[clip_key(frames)], make(seeds[0]).shape[1], fingerprint=name)
