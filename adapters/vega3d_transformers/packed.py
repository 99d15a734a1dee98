"""Hosts whose processor cuts pictures into rows of patches beforehand, as Qwen-VL's does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, TokenGrid
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import ImageSamples
from vega3d_qwen_vl.pixels import Packing

from .reader import Pictures, ProjectorReader, samples_from_tokens

#: How the names of the arguments end that say how the rows were cut.
GRIDS, MERGES = "grid_thw", "merge_sizes"


@dataclass(frozen=True)
class PackedReader(ProjectorReader):
    """See :class:`~vega3d_transformers.reader.ProjectorReader`; ``layout`` and ``cell`` play no part.

    Attributes:
        packing: of images; a host that tells how many patches it merges is believed.
    """

    packing: Packing = field(kw_only=True)

    def pictures(self, module: nn.Module, given: Tensor, arguments: Mapping[str, Any], video: bool) -> Pictures:
        """The rows among a method's arguments, with ``(t, h, w, merge)`` of each image or video."""
        grids = named(arguments, GRIDS)
        if grids is None or given.ndim != 2:
            raise HostError(
                f"Host {self.host!r} expects rows of patches [rows, columns] and an argument that ends in {GRIDS!r}, "
                f"found {list(given.shape)} and {sorted(arguments)}."
            )
        merges = named(arguments, MERGES)
        merges = torch.full((len(grids),), self.packing.merge) if merges is None else merges
        sizes = torch.cat([grids.cpu().long(), merges.cpu().long()[:, None]], dim=1)
        return Pictures(given, given, [1] * len(grids), video, sizes)

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Images per sample, from the image tokens of each row of ``input_ids`` and the grids."""
        given, grids = kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
        if given is None or grids is None:
            return None
        merges = kwargs.get("image_merge_sizes")
        merge = self.packing.merge if merges is None else merges
        return samples_from_tokens(self.host, entry, kwargs, (grids.prod(dim=1) // merge**2).tolist(), given)

    def _sized(self, notes: Pictures, output: Tensor) -> tuple[list[list[Clip]], int]:
        sizes = [] if notes.sizes is None else notes.sizes.tolist()
        clips = []
        for rows, (t, h, w, merge) in zip(notes.pixels.split([t * h * w for t, h, w, _ in sizes]), sizes, strict=True):
            frames = replace(self.packing, merge=merge).unpack(rows, (t, h, w))
            grid = TokenGrid(t, h // merge, w // merge)
            # An image is one frame repeated to fill the temporal patch; the prior should see it once.
            still = not notes.video and t == 1 and all(torch.equal(frames[0], frame) for frame in frames[1:])
            clips.append([self._clip(frames[:1] if still else frames, grid, "image" if still else "video")])
        return clips, 0


def named(arguments: Mapping[str, Any], ending: str) -> Tensor | None:
    """The tensor among a method's arguments whose name ends so."""
    return next((v for k, v in arguments.items() if k.endswith(ending) and isinstance(v, Tensor)), None)


def pack(frames: Tensor, packing: Packing) -> Tensor:
    """The inverse of :meth:`Packing.unpack`: ``[t * temporal, 3, H, W]`` to rows."""
    m, p, k = packing.merge, packing.patch, packing.temporal
    t, h, w = frames.shape[0] // k, frames.shape[2] // p, frames.shape[3] // p
    x = frames.reshape(t, k, 3, h // m, m, p, w // m, m, p)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)


__all__ = ["GRIDS", "MERGES", "PackedReader", "named", "pack"]
