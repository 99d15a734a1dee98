"""What this package adds to vega3d, through the same hook as any third party's."""

from __future__ import annotations

from collections.abc import Callable

from vega3d_plugin.contracts.later import LazyHost
from vega3d_plugin.hookspecs import hookimpl

from .about import VLLM_QWEN_VL


@hookimpl
def vega3d_register_hosts(register: Callable[[LazyHost], None]) -> None:
    """Register vLLM's Qwen-VL."""
    register(VLLM_QWEN_VL)
