"""What is known of these hosts without importing their adapter, which needs torch."""

from vega3d_plugin.contracts.later import LazyHost

BASE = "PrismaticForConditionalGeneration"

OPENVLA = LazyHost(
    "vega3d_openvla.adapter:OpenVLAAdapter",
    name="openvla",
    summary="OpenVLA, OpenVLA-OFT and Prismatic models (their own code)",
    seen_with="transformers 4.50.0 and timm 0.9.16, as openvla c8f03f4 and openvla-oft 213c5ff",
    classes=("OpenVLAForActionPrediction", BASE),
)
