"""A constant timestep makes the modulation of every Wan block constant: computed once and folded into the norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reduction import Reduction

_BLOCKS = ("WanTransformerBlock", "WanVACETransformerBlock")


class FoldedBlock(nn.Module):
    """diffusers' ``WanTransformerBlock`` or ``WanVACETransformerBlock`` at one timestep.

    ``norm(x) * (1 + scale) + shift`` is a layer norm with weight ``1 + scale`` and bias ``shift``. Attention and
    feed-forward are the block's own modules.

    Args:
        block: whose modules and parameters it shares, under the same names.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    attn1: Any
    attn2: Any
    norm2: Any
    ffn: Any
    proj_in: Any
    proj_out: Any

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.is_vace = type(block).__name__ == "WanVACETransformerBlock"
        for name, child in block.named_children():
            self.add_module(name, child)
        for name in ("proj_in", "proj_out"):
            if self.is_vace and not hasattr(self, name):
                self.register_module(name, None)
        self.scale_shift_table: nn.Parameter = block.scale_shift_table  # type: ignore[assignment]
        self.eps = (float(block.norm1.eps), float(block.norm3.eps))  # type: ignore[union-attr, arg-type]
        self.eval()

    def fold(self, timestep_projection: Tensor) -> None:
        """Take the timestep's projection ``[6, dim]`` as the only one there will be."""
        rows = self.scale_shift_table[0] + timestep_projection.float()
        shift, scale, gate = rows[0::3], rows[1::3] + 1, rows[2::3]
        for name, value in {"shift": shift, "scale": scale, "gate": gate}.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Tensor) -> Any:
        """As of the block; the timestep's projection is taken and not looked at."""
        if not self.is_vace:
            return self._run(hidden_states, encoder_hidden_states, rest[-1])
        control = rest[0]
        if self.proj_in is not None:
            control = self.proj_in(control) + hidden_states
        control = self._run(control, encoder_hidden_states, rest[-1])
        return (None if self.proj_out is None else self.proj_out(control)), control

    def _run(self, x: Tensor, prompt: Tensor, rotary: Any) -> Tensor:
        attended = self.attn1(self._normed(x, 0), None, None, rotary)
        x = self._gated(x, attended, 0)
        normed = self.norm2(x.float()).type_as(x)
        x = x + self.attn2(normed, prompt, None, None)
        return self._gated(x, self.ffn(self._normed(x, 1)), 1)

    def _normed(self, x: Tensor, part: int) -> Tensor:
        # In float32 whatever the compute dtype, as diffusers has it.
        normed = F.layer_norm(x.float(), x.shape[-1:], self.scale[part], self.shift[part], self.eps[part])
        return normed.type_as(x)

    def _gated(self, x: Tensor, update: Tensor, part: int) -> Tensor:
        return torch.addcmul(x.float(), update.float(), self.gate[part]).type_as(x)


def _apply(prior: Any) -> None:
    transformer = prior.models["transformer"]
    projection = prior.timestep_projection()
    stacks: list[Any] = [transformer.blocks, getattr(transformer, "vace_blocks", [])]
    for blocks in stacks:
        for index, block in enumerate(blocks):
            if type(block).__name__ in _BLOCKS:
                block = blocks[index] = FoldedBlock(block)
            block.fold(projection)


FOLDED_MODULATION = Reduction(
    "folded_modulation",
    "A prior runs at one timestep, so the six modulation vectors of a block are constants. Works in every context.",
    _apply,
)
