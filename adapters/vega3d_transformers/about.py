"""What is known of these hosts without importing their adapter, which needs torch."""

from vega3d_plugin.contracts.later import LazyHost

#: Of the classes that were tried and fit.
PREFIXES = (
    "AyaVision", "Cohere2Vision", "DeepseekVL", "Gemma3", "Glm46V", "Glm4v", "Glm4vMoe", "GotOcr2", "Idefics3",
    "InternVL", "Janus", "LightOnOcr", "Mistral3", "Ovis2", "PI0", "PaliGemma", "SmolVLM", "VideoLlama3",
)  # fmt: skip

TRANSFORMERS = LazyHost(
    "vega3d_transformers.adapter:TransformersAdapter",
    name="transformers",
    summary="other vision-language models with one token grid per picture (by name, with their processor)",
    seen_with="transformers 4.50.0 and 5.24.0",
    classes=tuple(f"{prefix}ForConditionalGeneration" for prefix in PREFIXES),
)
