"""What the plugins of this process registered, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import Registry, table

if TYPE_CHECKING:
    from .fusers import Fuser
    from .priors import PriorSpec
    from .seams import HostAdapter

HOSTS: Registry[HostAdapter] = table("host")
PRIORS: Registry[PriorSpec] = table("prior")
FUSERS: Registry[type[Fuser]] = table("fuser")
