"""Images of one sample as the views of one clip (``images="scene"``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..contracts.clips import Clip, TokenGrid


def join_views(images: Sequence[Sequence[Clip]], samples: Sequence[int]) -> list[Clip]:
    """Join neighbouring images of one sample and one size; images that were cut into tiles stay as they are.

    Args:
        images: for each image, its clips: one, or one for each tile.
        samples: for each image, the sample it belongs to.

    Returns:
        The clips in the same order, joined ones of the kind ``scene``.
    """
    scenes: list[Clip] = []
    run: list[Clip] = []
    last: int | None = None
    for clips, sample in zip(images, samples, strict=True):
        alone = len(clips) > 1
        if run and (alone or sample != last or clips[0].frames.shape != run[0].frames.shape):
            scenes.append(_join(run))
            run = []
        if alone:
            scenes += clips
        else:
            run += clips
        last = sample
    return [*scenes, _join(run)] if run else scenes


def _join(run: Sequence[Clip]) -> Clip:
    if len(run) == 1:
        return run[0]
    grid = run[0].grid
    return Clip(torch.cat([clip.frames for clip in run]), TokenGrid(len(run), grid.h, grid.w), "scene")
