"""Fused visual tokens as values: what passes between a host, a file and a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class FusedTokens:
    """The visual tokens of one prompt.

    Attributes:
        hidden_size: channels ``D`` of a token.
        embeds: by kind, in the order of the prompt, ``[L, D * (1 + n)]``: the tokens, and beside each what is added to
            it behind the first ``n`` layers (0 but for Qwen3-VL). This is the layout of vLLM and SGLang.
    """

    hidden_size: int
    embeds: Mapping[Kind, Tensor] = field(default_factory=dict)

    def streams(self, kind: Kind) -> tuple[Tensor, ...]:
        """The tokens ``[L, D]``, and what is added behind each of the first layers."""
        return tuple(torch.split(self.embeds[kind], self.hidden_size, dim=-1))
