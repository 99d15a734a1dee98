"""What this package adds to vega3d, through the same hook as any third party's."""

from __future__ import annotations

from collections.abc import Callable

from vega3d_plugin.contracts.seams import HostAdapter
from vega3d_plugin.hookspecs import hookimpl

from .adapter import VllmQwenAdapter


@hookimpl
def vega3d_register_hosts(register: Callable[[HostAdapter], None]) -> None:
    """Register vLLM's Qwen-VL."""
    register(VllmQwenAdapter())
