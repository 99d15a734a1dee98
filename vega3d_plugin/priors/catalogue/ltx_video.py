"""LTX-Video."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...contracts.settings import Settings
from .family import Rows


class LTXVideoOptions(Settings):
    """Settings of LTX-Video alone.

    Attributes:
        frame_rate: frames per second, > 0, for the positions in time (diffusers' pipeline: 25). It has an effect only
            in contexts ``views`` and ``video``.
    """

    frame_rate: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 25.0


FAMILY = Rows("generators.ltx_video:FAMILY", LTXVideoOptions, licence="LTX-Video Open Weights licence")

SPECS = (
    FAMILY.row(
        "ltx-video",
        "LTX-Video text-to-video, 2B, 28 blocks: fast, with coarse maps (32x32 pixels a feature)",
        source="Lightricks/LTX-Video",
        width=2048,
        blocks=28,
        tap=18,
        size=(512, 704),
        # 161 frames, the pipeline's length, are 21 latent steps.
        window=21,
        timestep=300,
        parameters=1.5,
    ),
)
