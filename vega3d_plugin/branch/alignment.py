"""From a prior's feature map ``[T', C, h', w']`` to a host's token grid ``[t, C, h, w]``, in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts.clips import Clip, TokenGrid
from ..contracts.errors import AlignmentError
from ..contracts.framing import Framing
from ..contracts.priors import Prior, Span
from ..priors.frozen.resizing import resize_framed

Space = Literal["bilinear", "adaptive_avg"]
Placement = Literal["own", "stretched"]


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


def align_clip(
    features: Tensor, clip: Clip, prior: Prior, merge: int, space: Space, placement: Placement | None = None
) -> Tensor:
    """A prior's feature map ``[T', C, h', w']`` of a clip, resampled to :func:`grid_of` it. Without parameters.

    Args:
        features: of the clip.
        clip: with its token grid.
        prior: that made the features.
        merge: patches per token and axis.
        space: as in :func:`align`.
        placement: of the map of a cut frame, see :class:`~vega3d_plugin.contracts.settings.BranchSettings`.

    Returns:
        ``[past + t, C, h, w]``, in the dtype of ``features`` and in one memory layout, channels last.
    """
    spans = prior.spans(clip.frames.shape[0], features.shape[0])
    framing = cut_of(clip, prior)
    if framing is not None and placement != "stretched":
        with torch.autocast(features.device.type, enabled=False):
            features = over_frame(features, framing)
    aligned = align(features, grid_of(clip, merge), space=space, spans=spans)
    return aligned.contiguous(memory_format=torch.channels_last)


def together(clip: Clip, prior: Prior) -> Clip:
    """All views of a clip's scene as one clip, on this clip's grid: each is brought to the prior's size on its own.

    A prior without a size of its own sees them in that of the first view.
    """
    views = clip.scene
    assert views is not None
    if views.seen is None:
        views.seen = _at_one_size(views.frames, prior)
    return replace(clip, frames=views.seen, grid=TokenGrid(len(views.frames), clip.grid.h, clip.grid.w))


def _at_one_size(views: Sequence[Tensor], prior: Prior) -> Tensor:
    sizes = [(view.shape[-2], view.shape[-1]) for view in views]
    framings = [prior.framing(size) for size in sizes]
    if len({framing.size for framing in framings}) > 1:
        framings = [Framing.stretch(size, sizes[0]) for size in sizes]
    return torch.cat([resize_framed(view[None], framing) for view, framing in zip(views, framings, strict=True)])


def cut_of(clip: Clip, prior: Prior) -> Framing | None:
    """The part of a clip's frames that the prior saw; None where it saw them whole."""
    frame = clip.frames if clip.scene is None else clip.scene.frames[clip.place]
    framing = prior.framing((frame.shape[-2], frame.shape[-1]))
    left, top, right, bottom = framing.box
    height, width = framing.frame
    # Half a pixel is the rounding of a size.
    whole = max(abs(left), abs(top), abs(right - width), abs(bottom - height)) < 0.5
    return None if whole else framing


def over_frame(features: Tensor, framing: Framing) -> Tensor:
    """A map of the part of a frame that the prior saw, as a map of the whole frame, at about the same density.

    A host's tokens are of the whole frame, so each is to meet the features of its own place. The released code takes
    the map of the cut for one of the whole: on the squashed 384x384 frames of its LLaVA host, which are cut to
    1280x720, the top token meets the feature of the row 22% further down.

    Args:
        features: ``[T', C, h', w']``.
        framing: of the prior, for frames of this size.

    Returns:
        ``[T', C, h, w]``, in the dtype of ``features``; 0 at places that the prior did not see.
    """
    left, top, right, bottom = framing.box
    height, width = framing.frame
    rows, columns = features.shape[-2:]
    size = (max(1, round(rows * height / (bottom - top))), max(1, round(columns * width / (right - left))))
    y = (torch.arange(size[0], device=features.device) + 0.5) * (height / size[0])
    x = (torch.arange(size[1], device=features.device) + 0.5) * (width / size[1])
    # -1 and 1 are the edges of the cut.
    down, across = (y - top) / (bottom - top) * 2 - 1, (x - left) / (right - left) * 2 - 1
    at = torch.stack([across.expand(size), down[:, None].expand(size)], dim=-1).expand(len(features), -1, -1, -1)
    placed = F.grid_sample(features.float(), at, mode="bilinear", padding_mode="border", align_corners=False)
    seen = (down.abs() <= 1)[:, None] & (across.abs() <= 1)
    return (placed * seen).to(features.dtype)


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
