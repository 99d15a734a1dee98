"""The built-in fusers, registered through the same hook as anybody's."""

from __future__ import annotations

from ..hookspecs import RegisterFuser, hookimpl
from .context_gated import ContextGated
from .cross_attention import CrossAttention
from .elementwise import Add, Concat, Only, Weighted
from .gated import Gated, TokenGated, TokenGatedResidual


@hookimpl
def vega3d_register_fusers(register: RegisterFuser) -> None:
    """Register every method of both released branches."""
    for fuser in (Add, Concat, ContextGated, CrossAttention, Gated, Only, TokenGated, TokenGatedResidual, Weighted):
        register(fuser)
    # The released code takes either name.
    register(ContextGated, name="instruction_token_gated")
