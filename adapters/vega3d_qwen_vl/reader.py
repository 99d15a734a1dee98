"""Reads clips and tokens at the Qwen-VL seam: a call of the vision tower ``visual``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, PixelStatistics, TokenGrid
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hosts.views import arranged
from vega3d_transformers.reader import arguments_of

from .pixels import Packing

Grid = tuple[int, int, int]
IMAGES, VIDEOS = "get_image_features", "get_video_features"


@dataclass(frozen=True)
class Packed:
    """The pixels that a host was given, before it casts them to the tower's dtype.

    Attributes:
        images, image_grid: of the images, or None.
        videos, video_grid: of the videos, or None.
        lasts: they are those of a whole forward, which calls the tower for images and for videos.
    """

    images: Tensor | None
    image_grid: Tensor | None
    videos: Tensor | None
    video_grid: Tensor | None
    lasts: bool

    def source(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, bool | None]:
        """The pixels behind those that the tower was called with, and whether they are videos (None: unknown)."""
        known = ((self.images, self.image_grid, False), (self.videos, self.video_grid, True))
        fits = [
            (given, video)
            for given, own, video in known
            if given is not None and own is not None and given.shape == pixels.shape and _same(own, grid)
        ]
        if len(fits) > 1:
            fits = [(given, video) for given, video in fits if torch.equal(given.to(pixels), pixels)][:1]
        return (fits[0][0].to(pixels.device), fits[0][1]) if fits else (pixels, None)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.to(other.device), other))


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
    #: Without notes the tower's own pixels are read.
    notes_optional = True

    def note(self, call: SeamCall) -> Packed | None:
        """The pixels of one call of :data:`IMAGES` or :data:`VIDEOS`, or of a forward that encodes both itself."""
        if isinstance(call.notes, Packed) and call.method:
            # One method calls the other (Qwen3-VL), which would take a video for images.
            return call.notes
        signature = None if call.method else inspect.signature(type(call.module).forward)
        arguments = arguments_of(call, signature)
        pixels = arguments.get("pixel_values"), arguments.get("pixel_values_videos")
        images, videos = (given if isinstance(given, Tensor) else None for given in pixels)
        if images is None and videos is None:
            return None
        grids = arguments.get("image_grid_thw"), arguments.get("video_grid_thw")
        return Packed(images, grids[0], videos, grids[1], lasts=not call.method)

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
        video: bool | None = None
        if isinstance(call.notes, Packed):
            pixels, video = call.notes.source(pixels, grid_thw)
        grids: list[Grid] = [(int(t), int(h), int(w)) for t, h, w in grid_thw.tolist()]
        clips = []
        for rows, grid in zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True):
            clips.append([self._clip(rows, grid, video)])
        known = call.video_samples if video else call.samples
        samples = None if known is None else known.rows(grid_thw, len(clips))
        as_scenes = call.as_scenes and all(clip.kind == "image" for (clip,) in clips)
        return SeamInput(tokens, arranged(clips, samples, as_scenes))

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
        return None if kwargs.get("pixel_values") is None else self._per_sample(entry, kwargs, "image")

    def video_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Videos per sample, from the video tokens of each row of ``input_ids``."""
        return None if kwargs.get("pixel_values_videos") is None else self._per_sample(entry, kwargs, "video")

    def _per_sample(self, entry: nn.Module, kwargs: Mapping[str, Any], kind: str) -> ImageSamples | None:
        ids, grid = kwargs.get("input_ids"), kwargs.get(f"{kind}_grid_thw")
        token: Any = getattr(entry.config, f"{kind}_token_id", None)
        if ids is None or grid is None or token is None:
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

    def _clip(self, rows: Tensor, grid: Grid, video: bool | None) -> Clip:
        frames = self.statistics.unnormalise(self.packing.unpack(rows, grid))
        t, h, w = grid
        token_grid = TokenGrid(t, h // self.packing.merge, w // self.packing.merge)
        # An image is one frame repeated to fill the temporal patch; the prior should see it once. A video that stands
        # still looks the same, where it is not known which of the two it is.
        if not video and t == 1 and all(torch.equal(frames[0], frame) for frame in frames[1:]):
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
