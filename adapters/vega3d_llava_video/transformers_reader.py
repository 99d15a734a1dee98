"""What transformers' LLaVA models do beside projecting: anyres tiles, and pooling of video frames after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_transformers.reader import Pictures, ProjectorReader, samples_from_tokens

#: The method of LLaVA-OneVision that pools the tokens of video frames.
POOL = "apply_pooling"


@dataclass(frozen=True)
class TransformersLlavaReader(ProjectorReader):
    """See :class:`vega3d_transformers.reader.ProjectorReader`.

    Attributes:
        pools: video frames are pooled after the projector, by :data:`POOL`.
    """

    pools: bool = False

    def pictures(self, module: nn.Module, given: Tensor, arguments: Mapping[str, Any], video: bool) -> Pictures:
        """The pictures among a method's arguments; tiles without those that pad the others' number."""
        sizes = arguments.get("image_sizes")
        if video or sizes is None or self.cell:
            return super().pictures(module, given, arguments, video)
        counts = _tiles(module, sizes, arguments.get("batch_num_images"))
        if given.ndim == 5:
            pixels = torch.cat([tiles[:count] for tiles, count in zip(given, counts, strict=True)])
        else:
            pixels = given
        return Pictures(given, pixels, counts, video)

    def read(self, call: SeamCall) -> SeamInput | None:
        """Tokens ``[L, D]`` and clips of one call of the projector or of :data:`POOL`."""
        notes = call.notes
        if isinstance(notes, Pictures) and self.pools and notes.video != (call.method == POOL):
            return None
        return super().read(call)

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """Images per sample: told by the processor, or all of equally many tokens. Tiles are never joined."""
        counts, given = kwargs.get("batch_num_images"), kwargs.get("pixel_values")
        if counts is not None and isinstance(given, Tensor):
            return ImageSamples(tuple(int(count) for count in counts), given)
        sizes = kwargs.get("image_sizes")
        if sizes is None or self.cell or not isinstance(given, Tensor):
            return super().image_samples(entry, kwargs)
        # How many tokens an image has depends on how it was cut.
        return samples_from_tokens(self.host, entry, kwargs, [0] * len(sizes), given)

    def fusing(self, notes: Pictures) -> str:
        """See :meth:`ProjectorReader.fusing`."""
        return POOL if notes.video and self.pools else super().fusing(notes)


def _tiles(module: Any, sizes: Any, images_per_sample: Any) -> list[int]:
    """Tiles that each image was cut into, its overview included, as the host itself counts them."""
    name = "image_size_to_num_patches"
    homes = (sys.modules.get(cls.__module__) for cls in type(module).__mro__)
    count = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
    if count is None:
        raise HostError(f"Host 'llava_transformers': {type(module).__name__} has no function {name!r} beside it.")
    config = module.config
    tiles = [count(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes]
    if images_per_sample is None:
        return tiles
    # LLaVA-OneVision cuts an image only when it is its sample's only one.
    alone = [int(n) == 1 for n in images_per_sample for _ in range(int(n))]
    return [number if cut else 1 for number, cut in zip(tiles, alone, strict=True)]
