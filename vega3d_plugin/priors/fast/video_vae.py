"""The causal Wan VAE on videos, in longer chunks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .reduction import Reduction

#: Pixels of a chunk: what diffusers' 4 frames have at 480x832, so that memory is no larger than there.
_PIXELS = 4 * 480 * 832


def joined_chunks(encoder: nn.Module, video: Tensor, time_stride: int) -> Tensor:
    """As ``AutoencoderKLWan.encode`` runs its encoder, with as many frames at once as memory was meant for.

    Args:
        encoder: diffusers' ``WanEncoder3d``.
        video: ``[B, C, 1 + time_stride * k, H, W]``, patches already in the channels.
        time_stride: frames per latent step.

    Returns:
        ``[B, z, 1 + k, h, w]``.
    """
    count, area = video.shape[2], video.shape[0] * video.shape[3] * video.shape[4]
    length = max(1, _PIXELS // (time_stride * area)) * time_stride
    # One place for each convolution; the encoder fills those that it has.
    cache: list[Any] = [None] * sum(1 for _ in encoder.modules())
    starts = [0, *range(1, count, length), count]
    # The first frame alone: it goes past the strides in time.
    parts = [encoder(video[:, :, start:end], feat_cache=cache, feat_idx=[0]) for start, end in pairwise(starts)]
    return torch.cat(parts, dim=2)


def _apply(prior: Any) -> None:
    prior.joins_chunks = True


JOINED_CHUNKS = Reduction(
    "joined_chunks",
    "The VAE is causal and goes through a video in chunks of 4 frames that remember the last two of each layer; longer "
    "chunks, as far as memory goes, look back less often. Does something in context video.",
    _apply,
)
