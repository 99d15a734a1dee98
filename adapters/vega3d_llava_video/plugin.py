"""What this package adds to vega3d, through the same hook as any third party's."""

from __future__ import annotations

from collections.abc import Callable

from vega3d_plugin.contracts.seams import HostAdapter
from vega3d_plugin.hookspecs import hookimpl

from .llava_package import LlavaPackageAdapter
from .transformers_adapter import TransformersLlavaAdapter


@hookimpl
def vega3d_register_hosts(register: Callable[[HostAdapter], None]) -> None:
    """Register the LLaVA hosts."""
    register(LlavaPackageAdapter())
    register(TransformersLlavaAdapter())
