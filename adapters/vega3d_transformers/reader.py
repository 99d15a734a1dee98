"""Reads clips and tokens where a vision-language model of transformers projects its visual features.

The projector's output are the tokens in the LLM's hidden size, before the host packs tiles, puts newline tokens between
rows or sorts images into samples. Its pixels are among the arguments of ``get_image_features`` and
``get_video_features``, which call it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, PixelStatistics, TokenGrid
from vega3d_plugin.contracts.errors import AlignmentError, HostError
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hosts.views import arranged

#: Tokens that a grid has at least.
LEAST = 16
IMAGES, VIDEOS = "get_image_features", "get_video_features"
#: Arguments of a forward that carry pixels.
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


class Layout(NamedTuple):
    """The tokens of one picture.

    Attributes:
        lead: tokens before the grid (a class token), which are left alone.
        h, w: rows and columns of the grid, in raster order.
    """

    lead: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        """All tokens of one picture."""
        return self.lead + self.h * self.w


@dataclass
class Pictures:
    """The pixels of one call of :data:`IMAGES` or :data:`VIDEOS`.

    Attributes:
        given: the tensor that the host passed.
        pixels: ``[N, 3, H, W]``, normalised: pictures in the order in which they are encoded.
        counts: pictures of each image (more than one when it was cut into tiles) or frames of each video.
        video: True for videos.
        sizes: of each picture, where they differ: ``[N, 2]``, height and width, of pictures padded to one size.
        fused: their tokens have been fused.
        left: tokens that the same method made in further calls of the projector, which were not.
    """

    given: Tensor
    pixels: Tensor
    counts: list[int]
    video: bool
    sizes: Tensor | None = None
    fused: bool = False
    left: int = 0


@dataclass(frozen=True)
class ProjectorReader:
    """See :class:`vega3d_plugin.contracts.seams.SeamReader`.

    Attributes:
        host: name of the adapter.
        statistics: with which the pixels were normalised.
        projector: dotted path of the module whose output holds the tokens, for messages.
        layout: of each picture's tokens; None: square, after at most one class token.
        cell: pixels per token and axis, for hosts that encode each picture in its own size; else 0.
    """

    host: str
    statistics: PixelStatistics
    projector: str
    layout: Layout | None = None
    cell: int = 0

    def note(self, call: SeamCall) -> Pictures | None:
        """The pictures of one call; None for a call without pixels."""
        if isinstance(call.notes, Pictures) and not call.notes.fused:
            # One method calls the other, which would take the frames of a video for images.
            return call.notes
        arguments = arguments_of(call)
        given = next((v for k, v in arguments.items() if k in PIXELS and isinstance(v, Tensor)), None)
        if given is None:
            return None
        return self.pictures(call.module, given, arguments, video=call.method == VIDEOS)

    def pictures(self, module: nn.Module, given: Tensor, arguments: Mapping[str, Any], video: bool) -> Pictures:
        """The pictures among a method's arguments.

        Args:
            module: the module whose method is called.
            given: its pixels, ``[..., 3, H, W]``; videos ``[B, T, 3, H, W]``.
            arguments: all arguments, by name.
            video: True for videos.

        Raises:
            AlignmentError: the pixels are not pictures.
        """
        if given.ndim < 4 or given.shape[-3] != 3:
            raise AlignmentError(f"Host {self.host!r}: the pixels {list(given.shape)} are not pictures [..., 3, H, W].")
        pixels = given.reshape(-1, *given.shape[-3:])
        frames = given.shape[1] if video and given.ndim == 5 else 1
        sizes = arguments.get("image_sizes") if self.cell else None
        return Pictures(given, pixels, [frames] * (pixels.shape[0] // frames), video, sizes)

    def read(self, call: SeamCall) -> SeamInput | None:
        """Tokens ``[L, D]`` and clips of one call of the projector; None for a call of someone else's."""
        notes = call.notes
        output = getattr(call.output, "pooler_output", call.output)
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise HostError(
                f"Host {self.host!r} expects {self.projector!r} to return a tensor of tokens, found "
                f"{type(call.output).__name__}."
            )
        if not isinstance(notes, Pictures):
            raise HostError(
                f"Host {self.host!r}: {self.projector!r} was called for {output.numel() // output.shape[-1]} visual "
                f"tokens, but not by {IMAGES!r} or {VIDEOS!r}, where the branch sees the pixels. This model encodes "
                "pictures in another way, so the branch cannot see them. It needs an adapter of its own "
                "(docs/your_own_host.md); vega3d.unpatch(model) takes the branch out."
            )
        if notes.fused:
            again = output.numel() // output.shape[-1]
            # Fewer than any grid has are marks between pictures, which Ovis 2 embeds by the same table.
            notes.left += again if again >= LEAST else 0
            return None
        notes.fused = True
        images, lead = self._sized(notes, output) if notes.sizes is not None else self._alike(notes, output)
        known = call.video_samples if notes.video else call.samples
        samples = None if known is None else known.rows(notes.given, len(images))
        clips = arranged(images, samples, call.as_scenes and not notes.video)
        shape = output.shape
        if not lead:
            tokens = output.reshape(-1, shape[-1])
            return SeamInput(tokens, clips, lambda fused: self.write(call.output, fused))
        rows = output.reshape(-1, lead + images[0][0].grid.h * images[0][0].grid.w, shape[-1])

        def put_back(tokens: Tensor) -> Tensor:
            grids = tokens.reshape(rows.shape[0], -1, shape[-1])
            whole: Tensor = self.write(call.output, torch.cat([rows[:, :lead], grids.to(rows.dtype)], dim=1))
            return whole

        return SeamInput(rows[:, lead:].reshape(-1, shape[-1]), clips, put_back)

    def write(self, output: Any, tokens: Tensor) -> Any:
        """All tokens, in the shape that the host gave them."""
        if isinstance(output, Tensor):
            return tokens.reshape(output.shape)
        output.pooler_output = tokens.reshape(output.pooler_output.shape)
        return output

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """The argument with pixels, or ``mm_encoder_outputs``."""
        found = next((key for key in PIXELS if kwargs.get(key) is not None), None)
        encoded = kwargs.get("mm_encoder_outputs") or {}
        return found or ("mm_encoder_outputs" if any(value is not None for value in encoded.values()) else None)

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Images per sample, from the image tokens of each row of ``input_ids``."""
        given = next((kwargs[key] for key in PIXELS[:2] if kwargs.get(key) is not None), None)
        if not isinstance(given, Tensor):
            return None
        sizes = kwargs.get("image_sizes") if self.cell else None
        if sizes is not None:
            tokens = [int(h) // self.cell * (int(w) // self.cell) for h, w in torch.as_tensor(sizes).tolist()]
        else:
            tokens = [1] * int(_shown(given.reshape(-1, *given.shape[-3:])).sum())
        return samples_from_tokens(self.host, entry, kwargs, tokens, given)

    def video_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Videos per sample, from the video tokens of each row of ``input_ids``; all have equally many."""
        given = kwargs.get("pixel_values_videos")
        if not isinstance(given, Tensor) or given.ndim != 5:
            return None
        return samples_from_tokens(self.host, entry, kwargs, [1] * len(given), given, "video")

    def missed(self, notes: Pictures) -> str:
        """All pictures of a call in which the projector was not called."""
        if notes.fused and notes.left:
            return (
                f"{notes.left} visual tokens of {len(notes.counts)} image(s), because {self.fusing(notes)!r} was "
                "called again for them. Only its first call for the pictures is understood."
            )
        if notes.fused:
            return ""
        what = "video" if notes.video else "image"
        return f"{len(notes.counts)} {what}(s), because {self.fusing(notes)!r} was not called with them."

    def fusing(self, notes: Pictures) -> str:
        """The point that should have fused these pictures, for a message."""
        return self.projector

    def _alike(self, notes: Pictures, output: Tensor) -> tuple[list[list[Clip]], int]:
        """Clips by image, and the tokens to leave alone before each grid, where all pictures have one grid."""
        layout = self.layout or square(self.host, output.shape[-2])
        rest = (output.numel() // output.shape[-1]) % layout.tokens
        encoded = (output.numel() // output.shape[-1]) // layout.tokens
        pixels, counts = notes.pixels, notes.counts
        if encoded != pixels.shape[0] and not notes.video:
            # Some hosts pad a sample with black pictures, which are not encoded.
            pixels = pixels[_shown(pixels)]
            counts = [1] * pixels.shape[0]
        if rest or encoded != pixels.shape[0]:
            raise AlignmentError(
                f"Host {self.host!r}: {self.projector!r} gave tokens {list(output.shape)} for {pixels.shape[0]} "
                f"pictures of {pixels.shape[-1]}x{pixels.shape[-2]}, expected {layout.tokens} tokens of each "
                f"({layout.lead} before a grid of {layout.h} x {layout.w})."
            )
        if notes.video:
            parts = pixels.split(counts)
            return [
                [self._clip(part, TokenGrid(len(part), layout.h, layout.w), "video")] for part in parts
            ], layout.lead
        grid = TokenGrid(1, layout.h, layout.w)
        clips = [self._clip(picture[None], grid, "image") for picture in pixels]
        return [[clips[int(i)] for i in part] for part in torch.arange(len(clips)).split(counts)], layout.lead

    def _sized(self, notes: Pictures, output: Tensor) -> tuple[list[list[Clip]], int]:
        """The same where each picture is encoded in its own size."""
        images = []
        for picture, (height, width) in zip(notes.pixels, torch.as_tensor(notes.sizes).tolist(), strict=True):
            grid = TokenGrid(1, int(height) // self.cell, int(width) // self.cell)
            images.append([self._clip(picture[None, :, : int(height), : int(width)], grid, "image")])
        return images, 0

    def _clip(self, pixels: Tensor, grid: TokenGrid, kind: Any) -> Clip:
        return Clip(self.statistics.unnormalise(pixels), grid, kind)


def samples_from_tokens(
    host: str, entry: nn.Module, kwargs: Mapping[str, Any], tokens: Sequence[int], given: Tensor, kind: str = "image"
) -> ImageSamples | None:
    """Give images to samples in order: as many as each sample has image tokens for, or as it has runs of them.

    Args:
        host: name of the adapter, for the message.
        entry: the module whose forward is called.
        kwargs: its arguments.
        tokens: of each image, or in proportion; 0 where it is not known.
        given: the pixels.
        kind: ``image`` or ``video``.

    Returns:
        None where the prompts are not among the arguments.

    Raises:
        HostError: there are several samples, and neither comes out even.
    """
    ids: Any = kwargs.get("input_ids")
    config: Any = entry.config
    token = getattr(config, f"{kind}_token_id", getattr(config, f"{kind}_token_index", None))
    if not isinstance(ids, Tensor) or token is None or not tokens:
        return None
    rows, starts = (marks.sum(dim=-1).tolist() for marks in (ids == token, _starts(ids == token)))
    counts, image = [], 0
    for row in rows:
        # Compared in whole numbers: a row's share of all tokens.
        left, first = row * sum(tokens), image
        while left > 0 and image < len(tokens):
            left -= tokens[image] * sum(rows)
            image += 1
        if left:
            break
        counts.append(image - first)
    if len(counts) == len(rows) and image == len(tokens) and all(tokens):
        return ImageSamples(tuple(counts), given)
    if sum(starts) == len(tokens):
        return ImageSamples(tuple(starts), given)
    if len(rows) == 1 or not all(tokens):
        return None
    raise HostError(
        f"Host {host!r}: images='scene', or a fusion that uses the instruction, cannot tell which {kind} belongs to "
        f"which prompt: the prompts have {rows} {kind} tokens, for {len(tokens)} {kind}s. Give one prompt at a time, "
        "or patch with images='separate' and another fusion."
    )


def _starts(marks: Tensor) -> Tensor:
    """``[B, L]``: where a run of marks begins."""
    first = marks.clone()
    first[:, 1:] &= ~marks[:, :-1]
    return first


def arguments_of(call: SeamCall, signature: inspect.Signature | None = None) -> dict[str, Any]:
    """The arguments of a method's call, by name; ``signature``: default: that of the module's class."""
    signature = signature or inspect.signature(getattr(type(call.module), call.method))
    bound = signature.bind(call.module, *call.args, **call.kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def square(host: str, tokens: int) -> Layout:
    """The square grid of ``tokens`` tokens, after one class token where only that makes it square.

    Raises:
        AlignmentError: neither.
    """
    for lead in (0, 1):
        side = math.isqrt(tokens - lead)
        if side and side * side == tokens - lead:
            return Layout(lead, side, side)
    raise AlignmentError(
        f"Host {host!r} expects a square grid of tokens per picture, found {tokens} of them: a resampler keeps no "
        "grid, so there is nothing to align features with."
    )


def _shown(pixels: Tensor) -> Tensor:
    """``[N]``, False for pictures of zeros, which are padding."""
    return pixels.flatten(1).ne(0).any(dim=1)


__all__ = [
    "IMAGES", "PIXELS", "VIDEOS", "Layout", "Pictures", "ProjectorReader", "arguments_of", "samples_from_tokens",
    "square",
]  # fmt: skip
