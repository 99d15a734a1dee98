"""vLLM as a host: Qwen2.5-VL and Qwen3-VL with a branch, for serving. Imports vLLM where vLLM asks for it alone.

The entry point ``vllm.general_plugins`` has vLLM call :func:`register`, which tells it two more model classes. A host
is served with its branch when it is asked to be::

    vllm serve HOST --hf-overrides '{"architectures": ["Vega3dQwen2_5_VLForConditionalGeneration"],
                                     "vega3d": {"branch": "out/checkpoint-500"}}'
"""

from . import plugin
from .registering import register

__all__ = ["plugin", "register"]
