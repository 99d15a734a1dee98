"""The built-in priors, registered through the same hook as anybody's. No model library is imported before use."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ..hookspecs import hookimpl
from .base import PriorSpec

#: Modules of this package, each with the priors of one family in ``SPECS``; in the order of ``vega3d ls priors``.
FAMILIES = (
    "wan",
    "wan_vace",
    "wan22",
    "hunyuan_video",
    "mochi",
    "cosmos",
    "cogvideox",
    "ltx_video",
    "stable_diffusion",
    "stable_video_diffusion",
    "vae",
    "vjepa2",
    "dinov3",
    "vggt",
    "external",
    "function",
    "tiny_wan",
)


@hookimpl
def vega3d_register_priors(register: Callable[[PriorSpec], None]) -> None:
    """Register every family's priors."""
    for family in FAMILIES:
        for spec in importlib.import_module(f".{family}", __package__).SPECS:
            register(spec)
