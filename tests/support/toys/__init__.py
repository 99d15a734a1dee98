"""Every prior at toy size: checkpoint folders of the real classes in the layout of the real ones, random weights."""

from __future__ import annotations

import importlib

from .base import Toy

#: Modules of this package, each with ``TOYS``.
FAMILIES = (
    "stable_diffusion",
    "stable_video_diffusion",
    "wan",
    "wan_vace",
    "wan22",
    "hunyuan_video",
    "mochi",
    "cosmos",
    "cogvideox",
    "ltx_video",
    "vjepa2",
    "dinov3",
    "small_world",
)


def all_toys() -> list[Toy]:
    """The toys that this environment can build, in the order of the modules."""
    return [toy for family in FAMILIES for toy in importlib.import_module(f"{__name__}.{family}").TOYS]


__all__ = ["Toy", "all_toys"]
