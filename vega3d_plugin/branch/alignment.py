"""From a prior's feature map ``[T', C, h', w']`` to a host's token grid ``[t, C, h, w]``, in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts.clips import Clip, TokenGrid
from ..contracts.errors import AlignmentError
from ..contracts.priors import Prior, Span

Space = Literal["bilinear", "adaptive_avg"]


def align(
    features: Tensor, grid: TokenGrid, *, space: Space = "bilinear", spans: Sequence[Span] | None = None
) -> Tensor:
    """Resample a feature map to a token grid.

    Args:
        features: ``[T', C, h', w']``.
        grid: the target; for a projector that merges ``m x m`` patches, ``h`` and ``w`` count patches.
        space: ``bilinear`` (align_corners=False, no antialias: the released Qwen2.5-VL branch) or ``adaptive_avg``
            (adaptive average pooling: the released LLaVA-Video branch).
        spans: for each of the ``T'`` steps, the part of the clip it covers, as fractions ``(start, end)`` of its
            length. Default: equal parts.

    Returns:
        ``[t, C, h, w]`` in the dtype of ``features``.

    Raises:
        AlignmentError: ``features`` is not a feature map, or ``spans`` does not match it.
    """
    if features.ndim != 4 or min(features.shape) < 1:
        raise AlignmentError(f"A feature map is [T', C, h', w'], got {list(features.shape)}.")
    size = (grid.h, grid.w)
    # In float32 throughout, whatever the host's autocast says, and rounded once. Both steps are linear and commute; the
    # one that shrinks the map goes first.
    with torch.autocast(features.device.type, enabled=False):
        if grid.h * grid.w < features.shape[-2] * features.shape[-1]:
            out = align_time(align_space(features.float(), size, space), grid.t, spans)
        else:
            out = align_space(align_time(features.float(), grid.t, spans), size, space)
        return out.to(features.dtype)


def grid_of(clip: Clip, merge: int) -> TokenGrid:
    """The grid that a clip's features are resampled to: of patches, and with the frames that have no tokens.

    Args:
        clip: with the host's token grid.
        merge: patches per token and axis that the projector takes.
    """
    return TokenGrid(clip.past + clip.grid.t, clip.grid.h * merge, clip.grid.w * merge)


def align_clip(features: Tensor, clip: Clip, prior: Prior, *, merge: int, space: Space) -> Tensor:
    """A prior's feature map ``[T', C, h', w']`` of a clip, resampled to :func:`grid_of` it. Without parameters.

    Returns:
        ``[past + t, C, h, w]``, in the dtype of ``features`` and in one memory layout, channels last.
    """
    spans = prior.spans(clip.frames.shape[0], features.shape[0])
    aligned = align(features, grid_of(clip, merge), space=space, spans=spans)
    return aligned.contiguous(memory_format=torch.channels_last)


def align_space(features: Tensor, size: tuple[int, int], mode: Space = "bilinear") -> Tensor:
    """Resample ``[N, C, h', w']`` to ``[N, C, *size]``, in float32; a map of the right size is returned as it is."""
    if mode not in ("bilinear", "adaptive_avg"):
        raise AlignmentError(f"Unknown spatial alignment {mode!r}. Known: 'adaptive_avg', 'bilinear'.")
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    if mode == "bilinear":
        out = F.interpolate(features.float(), size=size, mode="bilinear", align_corners=False)
    else:
        out = F.adaptive_avg_pool2d(features.float(), size)
    return out.to(features.dtype)


def align_time(features: Tensor, rows: int, spans: Sequence[Span] | None = None) -> Tensor:
    """Resample the first dimension of ``[T', C, ...]`` to ``rows`` token rows of equal length.

    With at least as many steps as rows, a row is the mean of the steps weighted by how much of it they cover (two
    frames per row of Qwen-VL: the mean of two). With fewer, rows are linearly interpolated between the centres of
    the steps (the causal video VAE: ``T' = 1 + (T - 1) / 4``).
    """
    steps = features.shape[0]
    if spans is None:
        if steps == rows:
            return features
        spans = [(i / steps, (i + 1) / steps) for i in range(steps)]
    elif len(spans) != steps:
        raise AlignmentError(f"The feature map has {steps} steps in time, but {len(spans)} spans were given.")
    weights = _mean_weights(spans, rows) if steps >= rows else _linear_weights(spans, rows)
    # One product of matrices, in the layout that features come in: channels last.
    last = features.float().movedim(1, -1)
    out = weights.to(features.device) @ last.reshape(steps, -1)
    return out.reshape(rows, *last.shape[1:]).movedim(-1, 1).to(features.dtype)


def _mean_weights(spans: Sequence[Span], rows: int) -> Tensor:
    """Rows x steps: share of each row that each step covers."""
    weights = torch.zeros(rows, len(spans), dtype=torch.float64)
    for row in range(rows):
        start, end = row / rows, (row + 1) / rows
        for step, (first, last) in enumerate(spans):
            weights[row, step] = max(0.0, min(end, last) - max(start, first))
        if weights[row].sum() <= 1e-12:
            raise AlignmentError(f"No feature step covers token row {row} of {rows}; spans: {list(spans)}.")
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _linear_weights(spans: Sequence[Span], rows: int) -> Tensor:
    """Rows x steps: linear interpolation between the centres of the steps, constant beyond the outer centres."""
    centres = [(first + last) / 2 for first, last in spans]
    weights = torch.zeros(rows, len(spans), dtype=torch.float32)
    for row in range(rows):
        at = (row + 0.5) / rows
        after = next((i for i, centre in enumerate(centres) if centre >= at), len(centres) - 1)
        before = max(0, after - 1)
        width = centres[after] - centres[before]
        share = 1.0 if width <= 0 else min(1.0, max(0.0, (at - centres[before]) / width))
        weights[row, before] += 1 - share
        weights[row, after] += share
    return weights
