"""Gates computed from the two tokens: ``gated``, ``token_gated`` and ``token_gated_residual``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...contracts.fusers import Fuser, scalar
from ...contracts.shares import share_of_weight
from ..layers import Linears


class _Gate(Linears):
    """The released gate is the first part of an ``nn.Sequential``, hence ``gate_projection.0``."""

    def __init__(self, hidden_size: int, gate_size: int) -> None:
        super().__init__({"0": (2 * hidden_size, gate_size)})

    def forward(self, x: Tensor) -> Tensor:
        return self.linear("0", x)


class GatedFuser(Fuser):
    """A gate in (0, 1) from both LayerNormed tokens: ``g = sigmoid(W [LN(sem); LN(gen)] + b)`` (paper, eq. of the
    token-level adaptive gate). ``g`` is the weight of the semantic token in :meth:`combine`'s mean, and its effective
    share only where that mean is all there is.
    """

    #: Gate values per token: 1, or the hidden size for a gate per channel.
    gate_size = 1
    gate_projection: nn.Module

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self._build_gate()

    def _build_gate(self) -> None:
        self.gate_projection = _Gate(self.hidden_size, self.gate_size)

    def gate_logits(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """``[..., gate_size]`` from LayerNormed tokens."""
        logits: Tensor = self.gate_projection(torch.cat([semantic, generative], dim=-1))
        return logits

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """Gate the tokens; see the class."""
        normed = self.norm1(semantic), self.norm2(generative)
        gate = torch.sigmoid(self.gate_logits(*normed, context))
        self.tell_gate(gate)
        return self.combine(gate, (semantic, generative), normed)

    def combine(self, gate: Tensor, raw: tuple[Tensor, Tensor], normed: tuple[Tensor, Tensor]) -> Tensor:
        """The released main-branch methods mix the NORMED tokens."""
        self.tell_weight(1 - gate)
        return gate * normed[0] + (1 - gate) * normed[1]


class TokenGated(GatedFuser):
    """One gate per token; the LayerNormed values are mixed (default of the released LLaVA-Video branch)."""

    name = "token_gated"


class Gated(GatedFuser):
    """One gate per channel; the LayerNormed values are mixed."""

    name = "gated"

    def _build_gate(self) -> None:
        self.gate_size = self.hidden_size
        super()._build_gate()


class TokenGatedResidual(GatedFuser):
    """``sem + a * (g * sem + (1 - g) * gen - sem)`` on the RAW values, ``a`` learnable (default of the released
    Qwen2.5-VL branch).

    Args:
        residual_scale: start value of ``a``; 0.2 as released, 0 makes the start an identity.
    """

    name = "token_gated_residual"
    identity = "own"

    def __init__(self, hidden_size: int, *, residual_scale: float = 0.2) -> None:
        super().__init__(hidden_size)
        self.residual_scale = scalar(residual_scale)

    def combine(self, gate: Tensor, raw: tuple[Tensor, Tensor], normed: tuple[Tensor, Tensor]) -> Tensor:
        """The gate comes from normed tokens, the mix is of the raw ones."""
        semantic, generative = raw
        self.tell_weight(self.residual_scale * (1 - gate), scale=self.residual_scale)
        mixed = gate * semantic + (1 - gate) * generative
        return semantic + self.residual_scale * (mixed - semantic)

    def share_limits(self) -> tuple[float, float]:
        """Those of a gate that is open to the generative token, and of one that is shut."""
        scale = self.residual_scale.detach().float()
        return 0.0, 1.0 if float(scale) > 1 else float(share_of_weight(scale))

    @torch.no_grad()
    def make_identity(self) -> None:
        """``a = 0``."""
        self.residual_scale.zero_()
