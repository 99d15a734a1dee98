"""What is known of these hosts without importing their adapter, which needs torch."""

from vega3d_plugin.contracts.later import LazyHost

LLAVA_PACKAGE = LazyHost(
    "vega3d_llava_video.llava_package:LlavaPackageAdapter",
    name="llava_video",
    summary="LLaVA-Video, LLaVA-OneVision, LLaVA 1.5 (package llava, and forks that keep its methods)",
    seen_with="transformers 4.50.0, as LLaVA-NeXT df17966 and llava-torch 1.2.2.post1",
    classes=("LlavaQwenForCausalLM", "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"),
)

#: Model classes of transformers by family.
FAMILIES = ("Llava", "VipLlava", "LlavaNext", "LlavaNextVideo", "LlavaOnevision", "VideoLlava")

LLAVA_TRANSFORMERS = LazyHost(
    "vega3d_llava_video.transformers_adapter:TransformersLlavaAdapter",
    name="llava_transformers",
    summary="LLaVA 1.5, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision, Video-LLaVA, VipLLaVA (transformers)",
    seen_with="transformers 4.50.0 and 5.24.0",
    classes=tuple(f"{family}ForConditionalGeneration" for family in FAMILIES),
)
