"""What is known of these hosts without importing their adapter, which needs torch."""

from vega3d_plugin.contracts.later import LazyHost

from .registering import SERVED

VLLM_QWEN_VL = LazyHost(
    "vega3d_vllm.adapter:VllmQwenAdapter",
    name="vllm_qwen_vl",
    summary="Qwen2.5-VL, Qwen3-VL (vLLM; served by its plugin)",
    seen_with="vLLM 0.32.0",
    classes=tuple(f"Vega3d{name}" for name in SERVED),
)
