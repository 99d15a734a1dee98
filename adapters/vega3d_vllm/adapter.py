"""vLLM's Qwen2.5-VL and Qwen3-VL: where their seam is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.pixel_statistics import CLIP, HALF, processor_statistics
from vega3d_plugin.contracts.seams import Seam, SeamPoint
from vega3d_qwen_vl.pixels import Packing

from .about import VLLM_QWEN_VL
from .reader import IMAGES, VIDEOS, VllmQwenReader

TOWER = "visual"


class VllmQwenAdapter:
    """Qwen2.5-VL and Qwen3-VL in vLLM; see :class:`vega3d_plugin.contracts.seams.HostAdapter`.

    The seam is the vision tower ``visual``, called by the methods that process images and videos. Its output holds
    Qwen3-VL's deepstack features beside the tokens, and those stay as they are.
    """

    name, summary, seen_with = VLLM_QWEN_VL.name, VLLM_QWEN_VL.summary, VLLM_QWEN_VL.seen_with
    classes: Sequence[str] = VLLM_QWEN_VL.classes
    #: The same model with the same tokens: branches that were trained there fit here.
    takes_branches_of = "qwen_vl"

    def matches(self, model: nn.Module) -> bool:
        """True for this package's classes of vLLM's models, which put the branch on by themselves."""
        return any(cls.__name__ in self.classes for cls in type(model).__mro__)

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The vision tower; see the protocol."""
        config: Any = model.config
        vision = config.vision_config
        if not isinstance(getattr(model, TOWER, None), nn.Module) or not callable(getattr(model, IMAGES, None)):
            raise HostError(
                f"Host {self.name!r} expects a vision tower {TOWER!r} and a method {IMAGES!r} on {type(model).__name__}"
                f", whose children are: {', '.join(name for name, _ in model.named_children()) or 'none'}. It was seen "
                f"with {self.seen_with}."
            )
        family = HALF if str(config.model_type).startswith("qwen3") else CLIP
        statistics = family if processor is None else processor_statistics(processor, self.name)
        packing = Packing(int(vision.patch_size), int(vision.temporal_patch_size), int(vision.spatial_merge_size))
        hidden = int(vision.out_hidden_size)
        return [
            Seam(
                path=TOWER,
                # The forward of the tower begins and ends what the branch sees of a call.
                entry=TOWER,
                hidden_size=hidden,
                merge=packing.merge,
                statistics=statistics,
                statistics_source="family" if processor is None else "processor",
                reader=VllmQwenReader(packing, statistics, hidden),
                points=(SeamPoint("", IMAGES, "note"), SeamPoint("", VIDEOS, "note"), SeamPoint(TOWER)),
            )
        ]
