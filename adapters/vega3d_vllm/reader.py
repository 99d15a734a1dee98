"""Reads clips and tokens at the seam of vLLM's Qwen-VL: a call of the vision tower ``visual``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vega3d_plugin.contracts.clips import Clip, PixelStatistics
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import SeamCall, SeamInput
from vega3d_qwen_vl.reader import Grid, Packed, QwenReader

#: Of pixels that are not normalised.
UNIT = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
#: The methods that call the tower, with a mapping of what vLLM knows of the pictures.
IMAGES, VIDEOS = "_process_image_input", "_process_video_input"


@dataclass(frozen=True)
class VllmQwenReader(QwenReader):
    """See :class:`vega3d_qwen_vl.reader.QwenReader`.

    Attributes:
        hidden_size: channels of a token; what stands beside it in the tower's output are deepstack features.
    """

    hidden_size: int = 0

    def note(self, call: SeamCall) -> Packed | None:
        """The pixels of one call of :data:`IMAGES` or :data:`VIDEOS`; None for one that is given tokens."""
        given = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
        if given is None or given.get("type") in ("image_embeds", "video_embeds"):
            return None
        if call.method == VIDEOS:
            return Packed(None, None, given["pixel_values_videos"], given["video_grid_thw"], lasts=False)
        return Packed(given["pixel_values"], given["image_grid_thw"], None, None, lasts=False)

    def read(self, call: SeamCall) -> SeamInput:
        """Tokens ``[L, D]`` and clips of one call ``visual(pixels, grid_thw=...)``, whose grids may be a list."""
        output = call.output
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] % self.hidden_size:
            raise HostError(
                f"Host 'vllm_qwen_vl' expects its tower to give [L, n * {self.hidden_size}], found "
                f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}."
            )
        kwargs = dict(call.kwargs)
        if isinstance(kwargs.get("grid_thw"), list):
            kwargs["grid_thw"] = torch.tensor(kwargs["grid_thw"])
        found = super().read(call._replace(kwargs=kwargs, output=output[:, : self.hidden_size]))
        deeper = output[:, self.hidden_size :]
        return found._replace(put_back=lambda fused: torch.cat([fused, deeper], dim=-1) if deeper.shape[1] else fused)

    def _clip(self, rows: Tensor, grid: Grid, video: bool | None) -> Clip:
        """One clip; vLLM may hand its tower grey levels, which it normalises by itself."""
        if rows.is_floating_point():
            return super()._clip(rows, grid, video)
        return replace(self, statistics=UNIT)._clip(rows.float() / 255, grid, video)

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """The tower is called with pixels alone, by position."""
        return next((key for key in ("input_ids", "x", "hidden_states") if kwargs.get(key) is not None), None)
