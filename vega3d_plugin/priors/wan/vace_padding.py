"""The released code's way with a VACE reference: an oddity, for checkpoints that were trained with it.

The noisy latents have the frame alone while the control branch has the reference and the frame. So the noisy tokens are
padded with rows of zeros to twice their number; these rows get no rotation, nobody attends to them, and they, not the
frame's own rows, are what the released encoder keeps as features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..fast.self_attention import rotate


@contextmanager
def released_padding(prior: Any, frames: int) -> Iterator[None]:
    """Within it, the transformer takes all latent frames but the first ``frames`` as padding.

    Args:
        prior: a Wan VACE prior, its models in place.
        frames: latent frames that are none.
    """
    transformer = prior.transformer

    def blank(module: Any, args: Any, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        embedded[:, :, frames:] = 0
        return embedded

    def unrotated(module: Any, args: Any, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        latents: Tensor = args[0]
        rows = angles[0].shape[1] * frames // latents.shape[2]
        cos, sin = angles[0].clone(), angles[1].clone()
        cos[:, rows:], sin[:, rows:] = 1, 0
        limit.rows = rows
        return cos, sin

    limit = _LimitedAttention()
    with ExitStack() as stack:
        for module, hook in ((transformer.patch_embedding, blank), (transformer.rope, unrotated)):
            stack.callback(module.register_forward_hook(hook).remove)
        for block in prior.blocks():
            stack.callback(block.attn1.set_processor, block.attn1.processor)
            block.attn1.set_processor(limit)
        yield


class _LimitedAttention:
    """Attention processor: everybody attends to the first ``rows`` tokens."""

    rows = 0

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
        rotary: tuple[Tensor, Tensor] = named["rotary_emb"] if "rotary_emb" in named else rest[-1]
        shape = (attn.heads, -1)
        kept = hidden_states[:, : self.rows]
        query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, shape), *rotary)
        key = rotate(attn.norm_k(attn.to_k(kept)).unflatten(2, shape), *(part[:, : self.rows] for part in rotary))
        value = attn.to_v(kept).unflatten(2, shape)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out
