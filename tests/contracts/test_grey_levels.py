"""Pixels that a host holds in half precision are the pictures of 8 bits that they were."""

from __future__ import annotations

import pytest
import torch

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.pixel_statistics import CLIP, HALF

IMAGENET = PixelStatistics.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("statistics", [HALF, IMAGENET], ids=["half", "imagenet"])
def test_half_precision_pixels_give_back_every_grey_level(statistics: PixelStatistics, dtype: torch.dtype) -> None:
    levels = torch.arange(256) / 255
    pixels = statistics.normalise(levels.expand(3, 1, 256)).to(dtype)
    assert torch.equal(statistics.unnormalise(pixels), levels.expand(3, 1, 256))


def test_clips_statistics_in_bfloat16_keep_all_levels_but_the_brightest() -> None:
    """Above two deviations neighbours fall together where a deviation is above 0.25: nothing can tell them apart."""
    levels = torch.arange(256) / 255
    frames = CLIP.unnormalise(CLIP.normalise(levels.expand(3, 1, 256)).bfloat16())
    wrong = (frames - levels).abs() > 1e-6
    assert not wrong[:, :, :240].any()
    assert float((frames - levels).abs().max()) < 1.5 / 255
