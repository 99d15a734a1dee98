"""Reads clips and tokens at the Qwen-VL seam: a call of the vision tower ``visual``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, PixelStatistics, TokenGrid
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hosts.views import join_views

from .pixels import Packing

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class QwenReader:
    """See :class:`vega3d_plugin.contracts.seams.SeamReader`.

    Attributes:
        packing: of the pixels.
        statistics: with which they were normalised.
    """

    #: See :func:`vega3d_plugin.contracts.seams.needs_no_tokens`: the grids are among the tower's arguments.
    clips_from_arguments: ClassVar[bool] = True

    packing: Packing
    statistics: PixelStatistics

    def read(self, call: SeamCall) -> SeamInput:
        """Tokens ``[L, D]`` and clips of one call ``visual(pixel_values, grid_thw=...)``."""
        pixels = call.args[0] if call.args else call.kwargs.get("hidden_states", call.kwargs.get("pixel_values"))
        grid_thw = call.args[1] if len(call.args) > 1 else call.kwargs.get("grid_thw")
        if not isinstance(pixels, Tensor) or not isinstance(grid_thw, Tensor):
            raise HostError(
                "Host 'qwen_vl': the vision tower was called without pixel_values or grid_thw "
                f"(positional: {len(call.args)}, named: {sorted(call.kwargs)})."
            )
        tokens = _tokens(call.output)
        grids: list[Grid] = [(int(t), int(h), int(w)) for t, h, w in grid_thw.tolist()]
        clips = []
        for rows, grid in zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True):
            clips.append(self._clip(rows, grid))
        if call.as_scenes and all(clip.kind == "image" for clip in clips):
            counts = _counts(call.samples, grid_thw, len(clips))
            clips = join_views([[clip] for clip in clips], [row for row, n in enumerate(counts) for _ in range(n)])
        return SeamInput(tokens, clips)

    def write(self, output: Any, tokens: Tensor) -> Any:
        """The tower's output with its merged tokens replaced; deepstack features stay as they are."""
        if isinstance(output, Tensor):
            return tokens
        if isinstance(output, tuple) and not hasattr(output, "pooler_output"):
            # Qwen3-VL before transformers 5: (tokens, deepstack features).
            return (tokens, *output[1:])
        output.pooler_output = tokens
        return output

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """``pixel_values``, ``pixel_values_videos`` or ``mm_encoder_outputs`` when given."""
        for key in ("pixel_values", "pixel_values_videos"):
            if kwargs.get(key) is not None:
                return key
        encoded = kwargs.get("mm_encoder_outputs") or {}
        return "mm_encoder_outputs" if any(value is not None for value in encoded.values()) else None

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Images per sample, from the image tokens of each row of ``input_ids``."""
        ids, grid, pixels = kwargs.get("input_ids"), kwargs.get("image_grid_thw"), kwargs.get("pixel_values")
        token: Any = getattr(entry.config, "image_token_id", None)
        if ids is None or grid is None or pixels is None or token is None:
            return None
        sizes = [int(t * h * w) // self.packing.merge**2 for t, h, w in grid.tolist()]
        counts, image = [], 0
        for needed in (ids == token).sum(dim=-1).tolist():
            first = image
            while needed > 0 and image < len(sizes):
                needed -= sizes[image]
                image += 1
            counts.append(image - first)
        return ImageSamples(tuple(counts), grid)

    def _clip(self, rows: Tensor, grid: Grid) -> Clip:
        frames = self.statistics.unnormalise(self.packing.unpack(rows, grid))
        t, h, w = grid
        token_grid = TokenGrid(t, h // self.packing.merge, w // self.packing.merge)
        # An image is one frame repeated to fill the temporal patch; the prior should see it once.
        if t == 1 and all(torch.equal(frames[0], frame) for frame in frames[1:]):
            return Clip(frames[:1], token_grid, "image")
        return Clip(frames, token_grid, "video")


def _tokens(output: Any) -> Tensor:
    """The flat merged tokens, in raster order. (``last_hidden_state`` is unmerged and, in Qwen2.5-VL, shuffled.)"""
    if isinstance(output, Tensor):
        return output
    tokens = getattr(output, "pooler_output", None)
    if tokens is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        tokens = output[0]
    if not isinstance(tokens, Tensor):
        raise HostError(
            f"Host 'qwen_vl' expects the vision tower to return a tensor, a tuple that begins with one, or an output "
            f"with `pooler_output`; found {type(output).__name__}. Run `vega3d doctor`."
        )
    return tokens


def _counts(samples: ImageSamples | None, grid_thw: Tensor, images: int) -> Sequence[int]:
    """Images per sample; all of one sample where the host did not tell (``generate`` encodes before the prompt)."""
    if samples is not None and sum(samples.counts) == images and torch.equal(samples.grid, grid_thw):
        return samples.counts
    return (images,)
