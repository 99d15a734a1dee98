"""HunyuanVideo."""

from __future__ import annotations

from pydantic import Field

from ...contracts.settings import Float, Settings
from .family import Rows


class HunyuanVideoOptions(Settings):
    """Settings of HunyuanVideo alone.

    Attributes:
        guidance: strength of the distilled guidance (diffusers' pipeline: 6). It is an input of the model, like the
            timestep, and costs no second forward.
    """

    guidance: Float = Field(default=6.0, ge=0)


FAMILY = Rows(
    "generators.hunyuan_video:FAMILY",
    HunyuanVideoOptions,
    licence="Tencent Hunyuan Community License (not for use in the EU, the UK and South Korea)",
)

SPECS = (
    FAMILY.row(
        "hunyuan-video",
        "HunyuanVideo text-to-video, 13B, 20 dual-stream and 40 single-stream blocks",
        source="hunyuanvideo-community/HunyuanVideo",
        width=3072,
        blocks=60,
        # Also the middle of the single-stream blocks, where the video tokens have long seen each other and are not yet
        # turned into a velocity.
        tap=40,
        # 540p is one of the sizes it was trained at; 129 frames are 33 latent steps.
        size=(544, 960),
        window=33,
        shift=7.0,
        parameters=10.0,
        taps="0 to 19: dual-stream blocks, 20 to 59: single-stream blocks",
    ),
)
