"""Frames to a prior's input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...contracts.errors import FramesError


def resize_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[T, C, H, W]`` so that it covers ``size``, then crop the centre (released ``resize_center_crop``).

    Bilinear, align_corners=False, without antialiasing.
    """
    if frames.ndim != 4:
        raise FramesError(f"Expected frames [T, C, H, W], got {list(frames.shape)}.")
    height, width = size
    scale = max(height / frames.shape[-2], width / frames.shape[-1])
    covered = (max(1, round(frames.shape[-2] * scale)), max(1, round(frames.shape[-1] * scale)))
    frames = resize_stretch(frames, covered)
    top, left = max(0, (covered[0] - height) // 2), max(0, (covered[1] - width) // 2)
    return frames[:, :, top : top + height, left : left + width]


def resize_stretch(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[T, C, H, W]`` to ``size`` without keeping the aspect ratio; bilinear, align_corners=False."""
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
