"""What is known of these hosts without importing their adapter, which needs torch."""

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.later import LazyHost
from vega3d_plugin.contracts.pixel_statistics import CLIP, HALF

#: Model classes by family, without and with a language-model head, and the statistics of their processors.
FAMILIES: dict[str, PixelStatistics] = {
    "Qwen2VL": CLIP,
    "Qwen2_5_VL": CLIP,
    "Qwen3VL": HALF,
    "Qwen3VLMoe": HALF,
    "Qwen3_5": HALF,
    "Qwen3_5Moe": HALF,
}

QWEN_VL = LazyHost(
    "vega3d_qwen_vl.adapter:QwenVLAdapter",
    name="qwen_vl",
    summary="Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 (transformers)",
    seen_with="transformers 4.50.0 and 5.24.0",
    classes=tuple(f"{family}ForConditionalGeneration" for family in FAMILIES),
)
