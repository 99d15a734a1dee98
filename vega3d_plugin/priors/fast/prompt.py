"""Cross-attention to a prompt that never changes, most of which is one and the same vector."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .reduction import Reduction


class PromptAttention:
    """Attention processor of a Wan cross-attention whose keys and values are constants.

    The prompt is padded with zero vectors before the text embedding and nothing is masked, so all padded keys are
    equal, and so are their values: softmax over ``m`` equal keys is softmax over one of them with ``log m`` added to
    its score.

    Args:
        keys: ``[K, heads, d]``, normalised.
        values: ``[K, heads, d]``.
        bias: ``[K]``, the logarithm of how often each key stands in the prompt.
    """

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor) -> None:
        self.keys, self.values, self.bias = keys, values, bias
        #: ``(scores' weight [heads * K, width], outputs' weight [width, heads * K])`` once the output is folded.
        self.tables: tuple[Tensor, Tensor] | None = None

    def fold_output(self, attn: Any) -> None:
        """Merge the values with the output projection, where that makes them smaller than the projection is.

        Attention mixes ``K`` constant values per head, and the projection is linear, so the projected values can be
        mixed instead: two matrices of rank ``heads * K`` in place of the scores and the projection.
        """
        count, heads, size = self.keys.shape
        if count * heads * 2 > attn.to_out[0].weight.shape[0]:
            return
        scores = torch.zeros(heads, count, heads, size, dtype=self.keys.dtype, device=self.keys.device)
        for head in range(heads):
            scores[head, :, head] = self.keys[:, head] / math.sqrt(size)
        projection = attn.to_out[0].weight.unflatten(1, (heads, size))
        outputs = torch.einsum("khd,ohd->ohk", self.values.float(), projection.float()).to(self.keys.dtype)
        self.tables = scores.flatten(2).flatten(0, 1), outputs.flatten(1)

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """``[B, L, width]`` to ``[B, L, width]``."""
        count, heads, _size = self.keys.shape
        query = attn.norm_q(attn.to_q(hidden_states))
        if self.tables is not None:
            scores = F.linear(query, self.tables[0]).unflatten(-1, (heads, count))
            shares = torch.softmax(scores.float() + self.bias, dim=-1).type_as(query)
            return F.linear(shares.flatten(-2), self.tables[1], attn.to_out[0].bias)
        batch = query.shape[0]
        keys, values = (t.transpose(0, 1).expand(batch, -1, -1, -1) for t in (self.keys, self.values))
        mixed = F.scaled_dot_product_attention(
            query.unflatten(2, (heads, -1)).transpose(1, 2), keys, values, attn_mask=self.bias.to(query)[None]
        )
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def _collapse(prior: Any) -> None:
    embedded, bias = prior.collapsed_prompt()
    for block in prior.blocks():
        attn = block.attn2
        # Not of an image-to-video model, whose prompt has image tokens too.
        if attn.add_k_proj is not None:
            continue
        shape = (attn.heads, -1)
        keys = attn.norm_k(attn.to_k(embedded)).unflatten(-1, shape)
        attn.set_processor(PromptAttention(keys, attn.to_v(embedded).unflatten(-1, shape), bias))


def _fold(prior: Any) -> None:
    for block in prior.blocks():
        if isinstance(block.attn2.processor, PromptAttention):
            block.attn2.processor.fold_output(block.attn2)


COLLAPSED_PROMPT = Reduction(
    "collapsed_prompt",
    "Of the 512 keys of the empty prompt, 511 are equal. Two keys with a log-count bias give the same attention. Keys "
    "and values are computed once. Works in every context, and for prompts of several tokens.",
    _collapse,
)
FOLDED_PROMPT_OUTPUT = Reduction(
    "folded_prompt_output",
    "With a few constant keys, scores and output projection have low rank and become two thin matrices. Needs "
    "collapsed_prompt. Works in every context.",
    _fold,
)
