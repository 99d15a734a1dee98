"""Reads clips and tokens at the seam of the package ``llava``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, PixelStatistics, TokenGrid
from vega3d_plugin.contracts.errors import AlignmentError
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hosts.views import arranged
from vega3d_transformers.reader import arguments_of

PREPARE, ENCODE, POOL = "prepare_inputs_labels_for_multimodal", "encode_images", "get_2dPool"
#: What stands for an image or a video in ``input_ids`` (``llava.constants.IMAGE_TOKEN_INDEX``).
PLACEHOLDER = -200


@dataclass(frozen=True)
class Entry:
    """One placeholder's pixels.

    Attributes:
        pixels: ``[T, 3, H, W]``, normalised: the frames of a video, or an image with the tiles it was cut into.
        video: True for a video, whose frames the host pools.
        sample: row of the batch that the placeholder stands in.
    """

    pixels: Tensor
    video: bool
    sample: int


@dataclass
class Notes:
    """The pixels of one call of :data:`PREPARE`, and how far the points have come with them.

    Attributes:
        entries: in the host's order.
        encoded: the images have been fused.
        pooled: videos that have been fused.
        pooling: the tensor that was pooled last; hosts with slow and fast frames pool one twice. Held, so that no other
            tensor can take its place in memory.
    """

    entries: list[Entry]
    encoded: bool = False
    pooled: int = 0
    pooling: Tensor | None = None

    @property
    def videos(self) -> list[Entry]:
        """Entries that are videos."""
        return [entry for entry in self.entries if entry.video]


@dataclass(frozen=True)
class LlavaReader:
    """See :class:`vega3d_plugin.contracts.seams.SeamReader`.

    Attributes:
        statistics: with which the pixels were normalised.
    """

    #: See :func:`vega3d_plugin.contracts.seams.fuses_several_times`: images at once, then each video.
    fuses_several_times: ClassVar[bool] = True

    statistics: PixelStatistics

    def note(self, call: SeamCall) -> Notes | None:
        """The images of one call, with the kind and the sample of each; None where the host returns early."""
        given = arguments_of(call, _signature(call.module, call.method))
        images, ids = given.get("images"), given.get("input_ids")
        # The host takes a prompt of one token for a step of decoding.
        if images is None or ids is None or ids.shape[1] == 1:
            return None
        modalities = given.get("modalities") or []
        modalities = [modalities] if isinstance(modalities, str) else list(modalities)
        samples = _samples(ids, given.get("attention_mask"))
        entries = []
        for index, pixels in enumerate(images):
            frames = pixels if pixels.ndim == 4 else pixels[None]
            video = index < len(modalities) and modalities[index] == "video"
            entries.append(Entry(frames, video, samples[index] if index < len(samples) else index))
        return Notes(entries)

    def read(self, call: SeamCall) -> SeamInput | None:
        """Tokens ``[L, D]`` and clips of one call of ``encode_images`` or ``get_2dPool``."""
        notes: Notes | None = call.notes
        return self._images(call, notes) if call.method == ENCODE else self._video(call, notes)

    def write(self, output: Tensor, tokens: Tensor) -> Tensor:
        """All tokens, in the shape that the host gave them."""
        return tokens.reshape(output.shape)

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """``images`` when given with a prompt; decoding steps and prompts that are encoded already pass nothing."""
        ids = kwargs.get("input_ids")
        encodes = kwargs.get("images") is not None and kwargs.get("inputs_embeds") is None
        return "images" if encodes and ids is not None and ids.shape[1] != 1 else None

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """None: the notes have it."""
        return None

    def missed(self, notes: Notes) -> str:
        """Images that were not encoded, or videos that were not pooled, by the methods that the branch stands at."""
        images, videos = len(notes.entries) - len(notes.videos), len(notes.videos)
        left = []
        if images and not notes.encoded:
            left.append(f"{images} image(s), because {ENCODE!r} was not called with them")
        if notes.pooled < videos:
            left.append(f"{videos - notes.pooled} video(s), because {POOL!r} was not called with them")
        return "; ".join(left) + "." if left else ""

    def _images(self, call: SeamCall, notes: Notes | None) -> SeamInput | None:
        pixels = call.args[0] if call.args else call.kwargs.get("images")
        output = call.output
        if not isinstance(pixels, Tensor) or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        # Called by itself, it encodes images.
        entries = [Entry(image[None], False, 0) for image in pixels] if notes is None else notes.entries
        count = sum(entry.pixels.shape[0] for entry in entries)
        if count != pixels.shape[0] or count != output.shape[0]:
            raise AlignmentError(
                f"Host 'llava_video': {ENCODE!r} was called with {pixels.shape[0]} pictures and gave tokens "
                f"{list(output.shape)}, but this batch has {count}."
            )
        if notes is not None:
            notes.encoded = True
        grid = _grid(output)
        rows, clips, start = [], [], 0
        for entry in entries:
            stop = start + entry.pixels.shape[0]
            if not entry.video:
                rows += list(range(start, stop))
                clips.append([self._clip(tile[None], grid, "image") for tile in entry.pixels])
            start = stop
        if not rows:
            return None
        samples = [entry.sample for entry in entries if not entry.video]
        joined = arranged(clips, samples, call.as_scenes)
        if len(rows) == output.shape[0]:
            return SeamInput(output.flatten(0, 1), joined)
        index = torch.tensor(rows, device=output.device)

        def put_back(tokens: Tensor) -> Tensor:
            # Frames of videos go on to be pooled as they are.
            return output.index_copy(0, index, tokens.reshape(len(rows), *output.shape[1:]).to(output.dtype))

        return SeamInput(output[index].flatten(0, 1), joined, put_back)

    def _video(self, call: SeamCall, notes: Notes | None) -> SeamInput | None:
        if notes is None:
            return None
        features = call.args[0] if call.args else call.kwargs["image_feature"]
        if not _same_memory(features, notes.pooling):
            notes.pooled, notes.pooling = notes.pooled + 1, features.detach()
        videos = notes.videos
        frames = videos[notes.pooled - 1].pixels if notes.pooled <= len(videos) else None
        if frames is None or frames.shape[0] != call.output.shape[0]:
            found = "no further video" if frames is None else f"a video of {frames.shape[0]} frames"
            raise AlignmentError(
                f"Host 'llava_video': {POOL!r} was called with {features.shape[0]} frames, call {notes.pooled}, where "
                f"this batch has {found}: this fork pools in another order. Please report it."
            )
        grid = _grid(call.output, frames.shape[0])
        clip = self._clip(frames, grid, "video")
        return SeamInput(call.output.flatten(0, 1), arranged([[clip]], [videos[notes.pooled - 1].sample], False))

    def _clip(self, pixels: Tensor, grid: TokenGrid, kind: Any) -> Clip:
        return Clip(self.statistics.unnormalise(pixels), grid, kind)


def _signature(module: nn.Module, method: str) -> inspect.Signature:
    """Of the nearest class whose method names its images; a fork may hand everything on as ``*args``."""
    defined = [inspect.signature(vars(cls)[method]) for cls in type(module).__mro__ if method in vars(cls)]
    return next((signature for signature in defined if "images" in signature.parameters), defined[0])


def _grid(tokens: Tensor, frames: int = 1) -> TokenGrid:
    """The square grid of tokens ``[frames, n, D]``."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise AlignmentError(
            f"Host 'llava_video' expects a square grid of tokens per picture, found {tokens.shape[1]} of them: a "
            "resampler (Q-Former, Perceiver) keeps no grid, so there is nothing to align features with."
        )
    return TokenGrid(frames, side, side)


def _same_memory(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape


def _samples(ids: Tensor, mask: Tensor | None) -> list[int]:
    """Row of the batch of each entry. A row without a placeholder has an entry all the same, which goes unused."""
    found: list[int] = []
    for row in range(ids.shape[0]):
        prompt = ids[row] if mask is None else ids[row][mask[row].bool()]
        found += [row] * max(1, int((prompt == PLACEHOLDER).sum()))
    return found
