"""DINOv3."""

from __future__ import annotations

from typing import Any

from ...contracts.settings import NoOptions
from ...contracts.specs import PriorSpec
from .family import later


def _spec(
    name: str, what: str, size: int, dim: int, parameters: float, convnext: bool = False, **presets: Any
) -> PriorSpec:
    short = name.removeprefix("dinov3-")
    count, parts = what.split()[-2:]
    return PriorSpec(
        name,
        later(f"encoders.dinov3:{'load_convnext' if convnext else 'load_vit'}"),
        f"DINOv3 {what}: a self-supervised image encoder, as a baseline",
        source=f"facebook/dinov3-{HUB.get(short, short)}-pretrain-lvd1689m",
        feature_dim=dim,
        contexts=("frame",),
        defaults={"tap": -1, "size": (size, size)},
        presets=presets,
        options=NoOptions,
        licence="DINOv3 License; accept it on the hub before you download",
        parameters=parameters,
        taps=f"0 to {int(count) - 1}: {parts}",
        kind=later("encoders.dinov3:Dinov3Prior"),
    )


#: As the hub spells the ViTs.
HUB = {
    "vits": "vits16",
    "vits-plus": "vits16plus",
    "vitb": "vitb16",
    "vitl": "vitl16",
    "vith-plus": "vith16plus",
    "vit7b": "vit7b16",
}


SPECS = (
    # 224 pixels as released; a ConvNeXt has half as many patches on a side, so it is given twice the pixels.
    _spec("dinov3-vits", "ViT-S, 12 layers", 224, 384, 0.022),
    _spec("dinov3-vits-plus", "ViT-S+, 12 layers", 224, 384, 0.029),
    _spec("dinov3-vitb", "ViT-B, 12 layers", 224, 768, 0.086),
    _spec("dinov3-vitl", "ViT-L, 24 layers", 224, 1024, 0.3, released={}),
    _spec("dinov3-vith-plus", "ViT-H+, 32 layers", 224, 1280, 0.84),
    _spec("dinov3-vit7b", "ViT-7B, 40 layers", 224, 4096, 6.7),
    _spec("dinov3-convnext-tiny", "ConvNeXt-T, 4 stages", 448, 768, 0.028, convnext=True),
    _spec("dinov3-convnext-small", "ConvNeXt-S, 4 stages", 448, 768, 0.049, convnext=True),
    _spec("dinov3-convnext-base", "ConvNeXt-B, 4 stages", 448, 1024, 0.088, convnext=True),
    _spec("dinov3-convnext-large", "ConvNeXt-L, 4 stages", 448, 1536, 0.2, convnext=True),
)
