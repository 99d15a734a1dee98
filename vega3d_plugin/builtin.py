"""What comes with the library, registered through the same hooks as anybody's: fusers, priors, matching of hosts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .contracts.later import LazyFuser
from .contracts.tables import HOSTS
from .hookspecs import RegisterFuser, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from .contracts.specs import PriorSpec

#: Modules of ``priors.catalogue``, each with the priors of one family in ``SPECS``; in the order of `vega3d ls priors`.
FAMILIES = (
    "wan",
    "vace",
    "hunyuan_video",
    "mochi",
    "cosmos",
    "cogvideox",
    "ltx_video",
    "stable_diffusion",
    "stable_video_diffusion",
    "image_vae",
    "vjepa2",
    "dinov3",
    "vggt",
    "external",
    "function",
    "small_world",
    "tiny",
)
# Which tokens of a prompt make its instruction.
_PROMPT: dict[str, Any] = {"relation_tokens": (), "template_tokens": (), "relation_boost": 2.0, "keep_last": 96}
_FUSERS = f"{__package__}.branch.fusers."
#: Every method of both released branches; what stands here is what the classes say, and a test compares.
FUSERS = (
    LazyFuser(
        _FUSERS + "elementwise:Add",
        "add",
        "sem + gen. Identity at the start when the projector's output starts at zero.",
        True,
    ),
    LazyFuser(
        _FUSERS + "elementwise:Concat", "concat", "One linear on the two LayerNormed tokens side by side.", False
    ),
    LazyFuser(
        _FUSERS + "context_gated:ContextGated",
        "context_gated",
        "Token gate with an instruction term: logit = W [LN(sem); LN(gen)] + bias + scale * MLP(LN(context)).",
        False,
        _PROMPT,
    ),
    LazyFuser(
        _FUSERS + "cross_attention:CrossAttention",
        "cross_attention",
        "Stack of cross-attention blocks; tokens attend within one frame.",
        True,
        {"num_heads": 8, "num_layers": 1, "dropout": 0.1},
    ),
    LazyFuser(_FUSERS + "gated:Gated", "gated", "One gate per channel; the LayerNormed values are mixed.", False),
    LazyFuser(
        _FUSERS + "context_gated:ContextGated",
        "instruction_token_gated",
        "Token gate with an instruction term: logit = W [LN(sem); LN(gen)] + bias + scale * MLP(LN(context)).",
        False,
        _PROMPT,
    ),
    LazyFuser(_FUSERS + "elementwise:Only", "only", "gen: the generative tokens replace the semantic ones.", False),
    LazyFuser(
        _FUSERS + "gated:TokenGated",
        "token_gated",
        "One gate per token; the LayerNormed values are mixed (default of the released LLaVA-Video branch).",
        False,
    ),
    LazyFuser(
        _FUSERS + "gated:TokenGatedResidual",
        "token_gated_residual",
        "sem + a * (g * sem + (1 - g) * gen - sem) on the RAW values, a learnable "
        "(default of the released Qwen2.5-VL branch).",
        True,
        {"residual_scale": 0.2},
    ),
    LazyFuser(
        _FUSERS + "elementwise:Weighted",
        "weighted",
        "(w2d * sem + wgen * gen) / (w2d + wgen) with two learnable scalars, 0.5 each at the start.",
        True,
    ),
)


class Fusers:
    """Every method of both released branches."""

    @staticmethod
    @hookimpl
    def vega3d_register_fusers(register: RegisterFuser) -> None:
        """See :mod:`~vega3d_plugin.hookspecs`."""
        for fuser in FUSERS:
            register(fuser)


class Priors:
    """Every family's priors. No model library is imported before one is used."""

    @staticmethod
    @hookimpl
    def vega3d_register_priors(register: Callable[[PriorSpec], None]) -> None:
        """See :mod:`~vega3d_plugin.hookspecs`."""
        for family in FAMILIES:
            for spec in importlib.import_module(f".priors.catalogue.{family}", __package__).SPECS:
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
