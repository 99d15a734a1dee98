"""Frames to a prior's input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import FramesError
from .framing import Framing


def resize_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[T, C, H, W]`` so that it covers ``size``, then crop the centre (released ``resize_center_crop``).

    Bilinear, align_corners=False, without antialiasing.
    """
    if frames.ndim != 4:
        raise FramesError(f"Expected frames [T, C, H, W], got {list(frames.shape)}.")
    return resize_framed(frames, Framing.crop((frames.shape[-2], frames.shape[-1]), size))


def resize_framed(frames: Tensor, framing: Framing) -> Tensor:
    """``[T, C, H, W]`` as a framing says; bilinear, align_corners=False, without antialiasing."""
    (top, left), (height, width) = framing.corner, framing.size
    return resize_stretch(frames, framing.covered)[:, :, top : top + height, left : left + width]


def resize_stretch(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[T, C, H, W]`` to ``size`` without keeping the aspect ratio; bilinear, align_corners=False."""
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
