"""Linear layers in 8-bit integers, on request: an approximation, not part of the fast path."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...contracts.errors import PriorError
from ..fast.reduction import replace

# Fewer rows, such as those of a prompt, are multiplied as they are.
_FEWEST_ROWS = 64
_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer whose products are of 8-bit integers: a scale for each row of the input and each output channel.

    Args:
        linear: whose parameters it shares.
    """

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        #: ``[in, out]`` and ``[out]``; no buffers, since they follow from the weights.
        self.numbers: Tensor | None = None
        self.scales: Tensor | None = None
        self.eval()

    def round(self) -> None:
        """Take the weights as they are now."""
        self.numbers, scales = _rounded(self.weight.detach().float())
        self.numbers, self.scales = self.numbers.T.contiguous(), scales[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = x.reshape(-1, x.shape[-1])
        if self.numbers is None or self.scales is None or rows.shape[0] < _FEWEST_ROWS:
            return F.linear(x, self.weight, self.bias)
        numbers, scales = _rounded(rows.float())
        out = torch._int_mm(numbers, self.numbers).float() * self.scales * scales
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], -1)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``[N, C]`` to 8-bit integers and a scale ``[N, 1]`` for each row."""
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
    return (rows / scales).round_().to(torch.int8), scales


def use_int8(prior: Any) -> None:
    """Put :class:`Int8Linear` into a Wan prior's blocks, behind the fast path; again after every move.

    Raises:
        PriorError: the models are on no CPU.
    """
    if prior.device.type != "cpu":
        raise PriorError(
            f"Prior {prior.settings.name!r}: int8=True works on a CPU, and the prior is on {prior.device}. "
            "Use device='cpu', or int8=False."
        )
    for block in prior.blocks():
        # Keys and values of the prompt are computed once at most.
        for part in (block.attn1, block.ffn, *(m for n, m in block.attn2.named_children() if n in ("to_q", "to_out"))):
            replace(part, ("Linear", "ConvolvedLinear"), Int8Linear)
        fused = getattr(block.attn1.processor, "projection", None)
        if fused is not None:
            block.attn1.processor.projection = Int8Linear(fused)
            block.attn1.processor.projection.round()
        for module in block.modules():
            if isinstance(module, Int8Linear) and not (fused is not None and _is_fused(block.attn1, module)):
                module.round()


def _is_fused(attn: Any, module: nn.Module) -> bool:
    return module in (attn.to_q, attn.to_k, attn.to_v)
