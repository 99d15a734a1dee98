"""Which host is this?"""

from __future__ import annotations

from torch import nn

from ..contracts.errors import HostError
from ..contracts.seams import HostAdapter
from ..contracts.tables import HOSTS
from ..plugins import plugin_manager


def find_host(model: nn.Module, name: str | None = None) -> HostAdapter:
    """The adapter for a model, by name or by looking at it.

    Raises:
        UnknownNameError: no adapter of that name.
        HostError: no adapter matches; the message lists what is supported and any plugin that failed to load.
    """
    manager = plugin_manager()
    found = name or manager.hook.vega3d_match_host(model=model)
    if found is not None:
        return manager.hosts.get(found)
    broken = "".join(f" Plugin {n!r} failed to load: {e}." for n, e in manager.broken.items())
    asked = [a.name for a in manager.hosts if type(model).__name__ in a.classes]
    if asked:
        raise HostError(
            f"No host adapter patches {type(model).__name__} by default, but {asked[0]!r} can. Name it: "
            f"vega3d.patch(model, host={asked[0]!r}, processor=processor).{broken}"
        )
    known = "; ".join(f"{a.name}: {', '.join(a.classes)}" for a in manager.hosts) or "no adapter is installed"
    raise HostError(
        f"No host adapter matches {type(model).__module__}.{type(model).__name__}. Supported: {known}.{broken} "
        "Run `vega3d doctor`, or pass `host=` to try an adapter by name."
    )


def list_hosts() -> list[str]:
    """Names of all registered hosts."""
    return HOSTS.names()
