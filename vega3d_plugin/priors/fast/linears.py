"""Linear layers in float32 on a CPU, as 1x1 convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reduction import Reduction, replace

# Below this many rows packing the weights costs more than the faster kernel gives.
_FEWEST_ROWS = 64


class ConvolvedLinear(nn.Module):
    """A linear layer that runs as a 1x1 convolution over channels-last rows where that is the faster kernel.

    torch multiplies float32 matrices with MKL, which uses half the vector width on CPUs that are not Intel's, while
    convolutions run in oneDNN, which uses all of it. The same products, summed in another order.

    Args:
        linear: whose parameters it shares.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = x.numel() // x.shape[-1]
        if x.device.type != "cpu" or x.dtype != torch.float32 or rows < _FEWEST_ROWS or not _onednn():
            return F.linear(x, self.weight, self.bias)
        image = x.reshape(1, 1, rows, x.shape[-1]).permute(0, 3, 1, 2)
        out = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _apply(prior: Any) -> None:
    for model in prior.models.values():
        replace(model, "Linear", ConvolvedLinear)


CONVOLVED_LINEARS = Reduction(
    "convolved_linears",
    "Runs linear layers as 1x1 convolutions, which oneDNN computes up to twice as fast in float32 on a CPU. Works in "
    "every context. On other devices and in other dtypes it changes nothing.",
    _apply,
)
