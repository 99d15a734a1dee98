"""``context_gated``: a token gate shifted by the instruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...contracts.errors import FusionError
from ...contracts.fusers import scalar
from ...contracts.printable import brief
from ...contracts.prompts import PromptReading
from ..layers import Linear, Linears
from .gated import GatedFuser


class _ContextMLP(Linears):
    """Linear, SiLU, Linear to one logit; names as released (``ctx_projection.0``, ``.2``)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__({"0": (hidden_size, hidden_size // 2), "2": (hidden_size // 2, 1)})

    def forward(self, x: Tensor) -> Tensor:
        return self.linear("2", F.silu(self.linear("0", x)))


class ContextGated(GatedFuser):
    """Token gate with an instruction term: ``logit = W [LN(sem); LN(gen)] + bias + scale * MLP(LN(context))``.

    ``context`` is ``[D]`` or ``[B, D]``, ``B`` being the first dimension of the tokens; a ``[B', D]`` of another
    length is reduced to its first row, as released. Without a context, or where it is 0, the gate is the plain one. The
    LayerNormed values are mixed.

    Args:
        relation_tokens, template_tokens, relation_boost, keep_last: which tokens of a prompt make its instruction, see
            :class:`~vega3d_plugin.contracts.prompts.PromptReading`.
    """

    name = "context_gated"
    uses_context = True

    def __init__(
        self,
        hidden_size: int,
        *,
        relation_tokens: Sequence[int] = (),
        template_tokens: Sequence[int] = (),
        relation_boost: float = 2.0,
        keep_last: int = 96,
    ) -> None:
        super().__init__(hidden_size)
        for name, tokens in (("relation_tokens", relation_tokens), ("template_tokens", template_tokens)):
            if isinstance(tokens, str) or not all(type(token) is int for token in tokens):
                raise FusionError(f"{name} of 'context_gated' must be token ids, found {brief(tokens)}.")
        if type(keep_last) is not int or keep_last < 0 or not relation_boost >= 1:
            raise FusionError(
                "keep_last of 'context_gated' must be a whole number from 0 and relation_boost a number from 1, found "
                f"{brief(keep_last)} and {brief(relation_boost)}."
            )
        self.reading = PromptReading(tuple(relation_tokens), tuple(template_tokens), relation_boost, keep_last)

    def _build_gate(self) -> None:
        self.norm_ctx = nn.LayerNorm(self.hidden_size)
        self.gate_projection = Linear(2 * self.hidden_size, 1)
        self.ctx_projection = _ContextMLP(self.hidden_size)
        self.context_scale = scalar(1.0)
        self.gate_bias = scalar(-0.5)

    def gate_logits(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """``[..., 1]`` from LayerNormed tokens and the instruction."""
        logits = super().gate_logits(semantic, generative, context) + self.gate_bias
        if context is None:
            return logits
        if context.ndim == 1:
            context = context[None]
        if context.ndim != 2 or context.shape[-1] != self.hidden_size:
            raise FusionError(
                f"Fusion 'context_gated' expects context [{self.hidden_size}] or [B, {self.hidden_size}], "
                f"got {list(context.shape)}."
            )
        if context.shape[0] != semantic.shape[0]:
            context = context[:1]
        shift: Tensor = self.ctx_projection(self.norm_ctx(context.to(semantic)))
        shift = shift * context.any(dim=-1, keepdim=True)
        return logits + self.context_scale * shift.reshape(-1, *[1] * (logits.ndim - 1))

    def idle_parameters(self, context: Tensor | None) -> Iterable[nn.Parameter]:
        """Without an instruction, its part of the gate is idle."""
        if context is not None:
            return ()
        return (*self.norm_ctx.parameters(), *self.ctx_projection.parameters(), self.context_scale)
