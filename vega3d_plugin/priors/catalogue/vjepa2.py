"""V-JEPA 2."""

from __future__ import annotations

from typing import Any

from ...contracts.settings import Positive, Settings
from ...contracts.specs import ALL_CONTEXTS, PriorSpec
from .family import later


class Vjepa2Options(Settings):
    """Settings of V-JEPA 2 alone.

    Attributes:
        short_side: the shorter side of a frame is resized to so many pixels before the centre is cropped to ``size``.
            The released code uses 256 before a crop of 224. None: the smallest that covers ``size``.
    """

    short_side: Positive | None = None


def _spec(name: str, size: str, hub: str, dim: int, layers: int, parameters: float, **presets: Any) -> PriorSpec:
    return PriorSpec(
        name,
        later("encoders.vjepa2:load_vjepa2"),
        f"V-JEPA 2, {size}, {layers} layers: a self-supervised video encoder, as a baseline",
        source=hub,
        feature_dim=dim,
        contexts=ALL_CONTEXTS,
        # Trained on 64 frames, which are 32 tubelets. A video encoder sees the video, as in the released code.
        defaults={"tap": -1, "size": (256, 256), "context": "video", "window": 32, "overlap": 4},
        presets=presets,
        options=Vjepa2Options,
        licence="MIT",
        parameters=parameters,
        taps=f"0 to {layers - 1}: layers of the encoder",
        kind=later("encoders.vjepa2:Vjepa2Prior"),
    )


# As scripts/3d/train/train_vjepa_online.sh has it. Frames beyond 32 are left out there, and seen in windows here.
RELEASED = {
    "pretrained": "facebook/vjepa2-vitg-fpc64-384-ssv2",
    "size": (224, 224),
    "window": 16,
    "overlap": 0,
    "options": {"short_side": 256},
}


SPECS = (
    _spec("vjepa2-vitl", "ViT-L", "facebook/vjepa2-vitl-fpc64-256", 1024, 24, 0.3),
    _spec("vjepa2-vith", "ViT-H", "facebook/vjepa2-vith-fpc64-256", 1280, 32, 0.63),
    _spec("vjepa2-vitg", "ViT-g", "facebook/vjepa2-vitg-fpc64-256", 1408, 40, 1.0, released=RELEASED),
)
