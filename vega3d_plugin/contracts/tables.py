"""What the plugins of this process registered, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .later import LazyFuser
from .registry import Registry, table

if TYPE_CHECKING:
    from .fusers import Fuser
    from .seams import HostAdapter
    from .specs import PriorSpec

HOSTS: Registry[HostAdapter] = table("host")
PRIORS: Registry[PriorSpec] = table("prior")
FUSERS: Registry[type[Fuser]] = table("fuser")


def starts_as_identity(fuser: str) -> bool:
    """Whether a registered fuser can start as if it were not there. Built-in ones are not imported to find out."""
    found = FUSERS.registered(fuser)
    return found.identity if isinstance(found, LazyFuser) else found.identity is not None
