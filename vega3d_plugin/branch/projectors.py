"""Projectors: a prior's feature dim to the host's hidden size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..contracts.errors import AlignmentError, UnknownNameError
from ..contracts.settings import PROJECTORS
from .layers import MLP


class MLPProjector(MLP):
    """Two-layer MLP on each position (released LLaVA-Video branch, ``mm_projector_type=mlp2x_gelu``).

    Shapes: ``[..., feature_dim]`` to ``[..., hidden_size]``. The hidden layer is ``hidden_size`` wide.
    """

    merge = 1

    def __init__(self, feature_dim: int, hidden_size: int, hidden_dim: int | None = None) -> None:
        super().__init__((feature_dim, hidden_dim or hidden_size, hidden_size))


class MergeProjector(nn.Module):
    """Merges ``merge x merge`` patches into a token (released Qwen2.5-VL branch, ``GeometryFeatureMerger``).

    ``mlp``: RMSNorm (eps 1e-6) per patch, patches of a window concatenated (row, column, channel), MLP.
    ``avg``: mean of the window, MLP, no norm.

    Shapes: ``[..., h, w, feature_dim]`` to ``[..., h // merge, w // merge, hidden_size]``; odd rows and columns at
    the bottom and right are dropped.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_size: int,
        hidden_dim: int | None = None,
        *,
        merge: int = 2,
        kind: Literal["mlp", "avg"] = "mlp",
    ) -> None:
        super().__init__()
        self.kind, self.merge = kind, merge
        if kind == "mlp":
            self.ln_q = nn.RMSNorm(feature_dim, eps=1e-6)
        fan_in = feature_dim * merge**2 if kind == "mlp" else feature_dim
        self.mlp = MLP((fan_in, hidden_dim or 4096, hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """See the class for shapes. Raises :class:`AlignmentError` for a map smaller than one window."""
        *lead, height, width, dim = features.shape
        m = self.merge
        h, w = height // m, width // m
        if h < 1 or w < 1:
            raise AlignmentError(f"A {m}x{m} merge needs a map of at least {m}x{m} patches, got {height}x{width}.")
        x = features[..., : h * m, : w * m, :].reshape(*lead, h, m, w, m, dim).transpose(-4, -3)
        if self.kind == "mlp":
            x = self.ln_q(x).flatten(-3)
        else:
            x = x.mean(dim=(-3, -2))
        out: Tensor = self.mlp(x)
        return out

    def zero_output(self) -> None:
        """Make the output exactly zero, while gradients still reach the last layer."""
        self.mlp.zero_output()


Projector = MLPProjector | MergeProjector


def build_projector(
    name: str, feature_dim: int, hidden_size: int, *, hidden_dim: int | None = None, merge: int = 2
) -> Projector:
    """Build a projector by its released name.

    Args:
        name: ``mlp2x_gelu``, or ``mlp`` / ``avg`` for the two merge projectors.
        feature_dim: channels of the prior's feature map.
        hidden_size: the host LLM's hidden size.
        hidden_dim: width of the MLP; default ``hidden_size`` for ``mlp2x_gelu``, 4096 for the merge projectors.
        merge: the merge projectors' window.

    Raises:
        UnknownNameError: no such projector; the message names close matches.
    """
    if name == "mlp2x_gelu":
        return MLPProjector(feature_dim, hidden_size, hidden_dim)
    kinds: dict[str, Literal["mlp", "avg"]] = {"mlp": "mlp", "avg": "avg"}
    if name in kinds:
        return MergeProjector(feature_dim, hidden_size, hidden_dim, merge=merge, kind=kinds[name])
    raise UnknownNameError("projector", name, PROJECTORS)


def project(projector: Projector, features: Tensor) -> Tensor:
    """Feature map ``[t, C, h, w]`` to generative tokens ``[t, h / merge, w / merge, D]``."""
    out: Tensor = projector(features.permute(0, 2, 3, 1).contiguous())
    return out


def parameter_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the module's first floating-point parameter, or None when it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
