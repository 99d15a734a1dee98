"""What this package adds to vega3d, through the same hook as any third party's."""

from __future__ import annotations

from collections.abc import Callable

from vega3d_plugin.contracts.later import LazyHost
from vega3d_plugin.hookspecs import hookimpl

from .about import TRANSFORMERS


@hookimpl
def vega3d_register_hosts(register: Callable[[LazyHost], None]) -> None:
    """Register the generic adapter."""
    register(TRANSFORMERS)
