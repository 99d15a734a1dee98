"""What vLLM calls in each of its processes."""

from __future__ import annotations

#: Class names of vLLM's own models that can have a branch; each has a class with ``Vega3d`` before its name.
SERVED = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")


def register() -> None:
    """Tell vLLM the classes. By name, so that nothing is imported before a model of them is asked for."""
    from vllm import ModelRegistry

    for name in SERVED:
        ModelRegistry.register_model(f"Vega3d{name}", f"vega3d_vllm.models:Vega3d{name}")
