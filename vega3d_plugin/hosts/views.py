"""Images of one sample as the views of one clip (``images="scene"``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..contracts.clips import Clip, SceneViews, TokenGrid


def join_views(images: Sequence[Sequence[Clip]], samples: Sequence[int]) -> list[Clip]:
    """Join neighbouring images of one sample; images that were cut into tiles stay as they are.

    Images of one size become one clip. Of several sizes each keeps a clip of its own, since its tokens have a grid of
    their own, but knows the others: the prior sees them together.

    Args:
        images: for each image, its clips: one, or one for each tile.
        samples: for each image, the sample it belongs to.

    Returns:
        The clips in the same order, views of the kind ``scene``.
    """
    scenes: list[Clip] = []
    run: list[Clip] = []
    last: int | None = None
    for clips, sample in zip(images, samples, strict=True):
        alone = len(clips) > 1
        if run and (alone or sample != last):
            scenes += _join(run)
            run = []
        if alone:
            scenes += clips
        else:
            run += clips
        last = sample
    return [*scenes, *_join(run)] if run else scenes


def _join(run: Sequence[Clip]) -> list[Clip]:
    if len(run) == 1:
        return [*run]
    grid = run[0].grid
    if all(clip.frames.shape == run[0].frames.shape and clip.grid == grid for clip in run):
        return [Clip(torch.cat([clip.frames for clip in run]), TokenGrid(len(run), grid.h, grid.w), "scene")]
    views = SceneViews(tuple(clip.frames[0] for clip in run))
    return [Clip(clip.frames, clip.grid, "scene", scene=views, place=place) for place, clip in enumerate(run)]
