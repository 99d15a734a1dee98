"""What comes with the library, registered through the same hooks as anybody's: fusers, priors, matching of hosts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from torch import nn

from .branch.fusers.context_gated import ContextGated
from .branch.fusers.cross_attention import CrossAttention
from .branch.fusers.elementwise import Add, Concat, Only, Weighted
from .branch.fusers.gated import Gated, TokenGated, TokenGatedResidual
from .contracts.priors import PriorSpec
from .contracts.tables import HOSTS
from .hookspecs import RegisterFuser, hookimpl

#: Modules of ``priors``, each with the priors of one family in ``SPECS``; in the order of ``vega3d ls priors``.
FAMILIES = (
    "wan.specs",
    "wan.vace",
    "generators.hunyuan_video",
    "generators.mochi",
    "generators.cosmos",
    "generators.cogvideox",
    "generators.ltx_video",
    "generators.stable_diffusion",
    "generators.stable_video_diffusion",
    "encoders.image_vae",
    "encoders.vjepa2",
    "encoders.dinov3",
    "encoders.vggt",
    "yours.external",
    "yours.function",
    "wan.small_world",
    "wan.tiny",
)


class Fusers:
    """Every method of both released branches."""

    @staticmethod
    @hookimpl
    def vega3d_register_fusers(register: RegisterFuser) -> None:
        """See :mod:`~vega3d_plugin.hookspecs`."""
        for fuser in (Add, Concat, ContextGated, CrossAttention, Gated, Only, TokenGated, TokenGatedResidual, Weighted):
            register(fuser)
        # The released code takes either name.
        register(ContextGated, name="instruction_token_gated")


class Priors:
    """Every family's priors. No model library is imported before one is used."""

    @staticmethod
    @hookimpl
    def vega3d_register_priors(register: Callable[[PriorSpec], None]) -> None:
        """See :mod:`~vega3d_plugin.hookspecs`."""
        for family in FAMILIES:
            for spec in importlib.import_module(f".priors.{family}", __package__).SPECS:
                register(spec)


class Hosts:
    """Which host is this? Each registered adapter is asked."""

    @staticmethod
    @hookimpl(trylast=True)
    def vega3d_match_host(model: nn.Module) -> str | None:
        """The first registered adapter, by name, whose ``matches`` says yes."""
        return next((adapter.name for adapter in HOSTS if adapter.matches(model)), None)


#: Plugins by name, as ``vega3d ls plugins`` shows them.
PLUGINS: Mapping[str, object] = {"builtin_fusers": Fusers, "builtin_priors": Priors, "builtin_hosts": Hosts}
