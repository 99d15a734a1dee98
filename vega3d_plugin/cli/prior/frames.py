"""Frames of what a user names on the command line: a video, a folder of images, or one image."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contracts.errors import FramesError
from ...contracts.settings import PriorSettings
from ...priors.frozen.resizing import resize_crop, resize_stretch
from ...scenes.images import Frames, Pixels


def as_clip(frames: Frames, settings: PriorSettings) -> Tensor:
    """Frames as a prior takes them: ``[T, 3, H, W]`` in [0, 1], float32.

    Images of different sizes are brought to the prior's size first, each as the prior would do it.

    Raises:
        FramesError: images of different sizes, and a prior without a size.
    """
    tensors = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in frames.pictures]
    odd = next((i for i, tensor in enumerate(tensors) if tensor.shape != tensors[0].shape), None)
    if odd is not None:
        if settings.size is None:
            sizes = [f"{frames.labels[i]} is {tensors[i].shape[2]}x{tensors[i].shape[1]}" for i in (0, odd)]
            raise FramesError(f"The images differ in size: {' and '.join(sizes)}. Bring them to one size first.")
        tensors = [resized(tensor[None], settings)[0] for tensor in tensors]
    return torch.stack(tensors)


def resized(clip: Tensor, settings: PriorSettings) -> Tensor:
    """``[T, 3, H, W]`` as the prior sees it: at its size, cropped or stretched; as it is where it has none."""
    if settings.size is None:
        return clip
    return (resize_crop if settings.resize == "crop" else resize_stretch)(clip, settings.size)


def as_pixels(clip: Tensor) -> Pixels:
    """``[T, 3, H, W]`` in [0, 1] to uint8 ``[T, H, W, 3]``."""
    pixels: Pixels = (clip.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels
