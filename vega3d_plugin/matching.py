"""Which host is this? The built-in answer: ask each registered adapter."""

from __future__ import annotations

from torch import nn

from .hookspecs import hookimpl
from .registry import HOSTS


@hookimpl(trylast=True)
def vega3d_match_host(model: nn.Module) -> str | None:
    """The first registered adapter, by name, whose ``matches`` says yes."""
    return next((adapter.name for adapter in HOSTS if adapter.matches(model)), None)


def list_hosts() -> list[str]:
    """Names of all registered hosts."""
    return HOSTS.names()
