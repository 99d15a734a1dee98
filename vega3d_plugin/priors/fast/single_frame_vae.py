"""The Wan VAE on single frames: causal 3D convolutions are 2D ones, and norms are one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reduction import Reduction, replace

# Values in a slab: 2 MB of float32.
_SLAB = 1 << 19
# In place of the clamp at 1e-12 of the norm: where it matters both give nearly zero.
_TINY = 1e-26


class SingleFrameConv(nn.Module):
    """diffusers' ``WanCausalConv3d``, as a 2D convolution where the input is the first frame and the only one.

    All other taps of the kernel in time would only see the zero padding. With more frames, or with a cache of earlier
    ones, it is the convolution that it stands for.

    Args:
        conv: whose parameters it shares.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = tuple(conv.stride[1:])
        left, right, top, bottom, *_ = conv._padding
        self.padding = (top, left)
        self.is_plain = left == right and top == bottom and conv.groups == 1 and set(conv.dilation) == {1}
        # In a list, so that it is no submodule and its parameters have one name.
        self._conv = [conv]
        self.eval()

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T', H', W']``."""
        if x.shape[2] != 1 or cache_x is not None or not self.is_plain:
            whole: Tensor = self._conv[0](x, cache_x)
            return whole
        weight = self.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
        image = x[:, :, 0].contiguous(memory_format=torch.channels_last)
        return F.conv2d(image, weight, self.bias, self.stride, self.padding)[:, :, None]


class SinglePassNorm(nn.Module):
    """diffusers' ``WanRMS_norm`` over the channels, in one pass where channels are last in memory.

    Args:
        norm: whose parameters it shares.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma = norm.gamma
        self._norm = [norm]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with channels second."""
        norm = self._norm[0]
        rows = x.movedim(1, -1)
        simple = norm.channel_first and not isinstance(norm.bias, Tensor) and rows.is_contiguous()
        if simple and x.device.type != "cpu":
            # In half precision it rounds once, at the end, where the plain one rounds three times.
            return F.rms_norm(rows, rows.shape[-1:], self.gamma.flatten(), _TINY).movedim(-1, 1)
        if not simple or x.dtype != self.gamma.dtype:
            plain: Tensor = norm(x)
            return plain
        out, gamma = torch.empty_like(rows), self.gamma.flatten()
        # Slabs that stay in the cache between the steps.
        for source, target in zip(_slabs(rows), _slabs(out), strict=True):
            exact = source.float()
            length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).clamp_min_(1e-12)
            if source is exact:
                torch.mul(source, norm.scale / length, out=target).mul_(gamma)
            else:
                target.copy_(exact.mul_(norm.scale / length).mul_(gamma))
        return out.movedim(-1, 1)


def _slabs(rows: Tensor) -> tuple[Tensor, ...]:
    slabs: tuple[Tensor, ...] = rows.flatten(0, -2).split(max(1, _SLAB // rows.shape[-1]))
    return slabs


def _convs(prior: Any) -> None:
    for part in (prior.models["vae"].encoder, prior.models["vae"]):
        replace(part, "WanCausalConv3d", SingleFrameConv)


def _norms(prior: Any) -> None:
    encoder = prior.models["vae"].encoder
    replace(encoder, "WanRMS_norm", SinglePassNorm)
    # What a norm gave is not looked at again, so its memory can be written over.
    replace(encoder, "SiLU", lambda _: nn.SiLU(inplace=True))


SINGLE_FRAME_VAE = Reduction(
    "single_frame_vae",
    "On a single frame, a causal 3x3x3 convolution sees zeros for the two frames before it, so only its last temporal "
    "slice is computed. Works in contexts frame and views. In video it has no effect.",
    _convs,
)
SINGLE_PASS_NORMS = Reduction(
    "single_pass_norms",
    "A normalisation reads the memory once instead of six times, and the activation after it works in place. It has an "
    "effect where channels are last in memory, which single_frame_vae makes them.",
    _norms,
)
