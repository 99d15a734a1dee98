"""Clips of several images, each with the sample it belongs to; those of one sample may be the views of one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..contracts.clips import Clip, SceneViews, TokenGrid


def arranged(images: Sequence[Sequence[Clip]], samples: Sequence[int] | None, as_scenes: bool) -> list[Clip]:
    """All clips in order, each told its sample.

    Args:
        images: for each image or video, its clips: one, or one for each tile.
        samples: for each of them, the row of the batch it belongs to; None where the host did not tell. Then they are
            taken as those of one sample, for joining alone.
        as_scenes: join the images of one sample (``images="scene"``).
    """
    images = [[replace(clip, tile=True) for clip in clips] if len(clips) > 1 else clips for clips in images]
    if samples is not None:
        images = [[replace(clip, sample=row) for clip in clips] for clips, row in zip(images, samples, strict=True)]
    if as_scenes:
        return join_views(images, [0] * len(images) if samples is None else samples)
    return [clip for clips in images for clip in clips]


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
        frames = torch.cat([clip.frames for clip in run])
        return [replace(run[0], frames=frames, grid=TokenGrid(len(run), grid.h, grid.w), kind="scene")]
    views = SceneViews(tuple(clip.frames[0] for clip in run))
    return [replace(clip, kind="scene", scene=views, place=place) for place, clip in enumerate(run)]
