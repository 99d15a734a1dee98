"""Methods without a gate and without attention: ``add``, ``only``, ``weighted``, ``concat``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...contracts.fusers import Fuser, scalar
from ...contracts.shares import share_of_weight
from ..layers import Linear


class Add(Fuser):
    """``sem + gen``. Identity at the start when the projector's output starts at zero."""

    name = "add"
    identity = "zero_generative"

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """The sum."""
        return semantic + generative


class Only(Fuser):
    """``gen``: the generative tokens replace the semantic ones."""

    name = "only"

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """The generative tokens."""
        self.tell_weight(torch.ones_like(generative[..., :1]))
        return generative

    def share_limits(self) -> tuple[float, float]:
        """The generative token is all there is."""
        return 1.0, 1.0


class Weighted(Fuser):
    """``(w2d * sem + wgen * gen) / (w2d + wgen)`` with two learnable scalars, 0.5 each at the start."""

    name = "weighted"
    identity = "own"
    # The released spatial-reasoning branch calls the second weight `weight_3d`.
    aliases = {"weight_3d": "weight_gen"}  # noqa: RUF012 - annotated as ClassVar in the base class

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.weight_2d = scalar(0.5)
        self.weight_gen = scalar(0.5)

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """The weighted mean."""
        total = self.weight_2d + self.weight_gen
        self.tell_weight(self.weight_gen / total)
        return self.weight_2d / total * semantic + self.weight_gen / total * generative

    def share_limits(self) -> tuple[float, float]:
        """One share for all tokens."""
        share = float(share_of_weight(self.weight_gen / (self.weight_2d + self.weight_gen)))
        return share, share

    @torch.no_grad()
    def make_identity(self) -> None:
        """All weight on the semantic tokens."""
        self.weight_2d.fill_(1.0)
        self.weight_gen.zero_()


class Concat(Fuser):
    """One linear on the two LayerNormed tokens side by side."""

    name = "concat"

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.projection = Linear(2 * hidden_size, hidden_size)

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """The projected pair."""
        out: Tensor = self.projection(torch.cat([self.norm1(semantic), self.norm2(generative)], dim=-1))
        return out
