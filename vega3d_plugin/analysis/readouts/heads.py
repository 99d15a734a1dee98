"""Read-outs: the features of a few views to points, depth and cameras.

``small`` trains in minutes on one CPU core; ``full`` is VidFM3D's published head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .attention import Backbone, Block, Mlp
from .dense import PointDepthHead

Size = Literal["small", "full"]
SIZES: tuple[Size, ...] = ("small", "full")


@dataclass(frozen=True)
class Prediction:
    """What is read out of a batch of clips.

    Attributes:
        points: ``[B, S, H, W, 3]`` in the first view's camera, in the clip's own unit (see ``poses.rebase``).
        depth: ``[B, S, H, W, 1]``, above 0, in that unit.
        cameras: refinements, first to last, each ``[B, S, 9]`` as ``poses.encode_cameras`` has them.
    """

    points: Tensor
    depth: Tensor
    cameras: list[Tensor]


class ReadoutHead(Protocol):
    """What can be trained: a module that maps features to a :class:`Prediction` of a given size."""

    def __call__(self, features: Tensor, size: tuple[int, int]) -> Prediction:
        """Features ``[B, S, C, h, w]`` to a prediction of ``size`` (height, width)."""
        ...


def build_head(channels: int, size: Size, seed: int = 0) -> nn.Module:
    """A read-out with initial weights drawn from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallReadout(channels) if size == "small" else FullReadout(channels)


def inverse_log(x: Tensor) -> Tensor:
    """``sign(x) (exp |x| - 1)``: large coordinates from small numbers."""
    return x.sign() * x.abs().expm1()


def camera_activation(cameras: Tensor) -> Tensor:
    """Nine numbers ``[..., 9]`` whose fields of view (the last two) are not negative."""
    return torch.cat([cameras[..., :7], cameras[..., 7:].relu()], dim=-1)


class SmallReadout(nn.Module):
    """The lightest form that keeps the published one's parts: per-token heads at the resolution of the features.

    Args:
        channels: of the features.
        width: of the tokens, 64 to 128.
        depth: pairs of attention blocks, 1 or 2.
        heads: of the attention.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        # The published factor of 0.01 needs tens of thousands of steps to grow.
        self.backbone = Backbone(channels, width, depth, heads, scale=0.5)
        self.norm = nn.LayerNorm(2 * width)
        self.point = nn.Linear(2 * width, 3)
        self.depth = nn.Linear(2 * width, 1)
        self.camera = Mlp(2 * width, width, 9)
        with torch.no_grad():
            # Begin at a camera that looks ahead with a field of view of one radian.
            self.camera.fc2.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Prediction:
        """Features ``[B, S, C, h, w]`` to a prediction; ``size`` must be (h, w)."""
        height, width = features.shape[-2:]
        assert size == (height, width), (size, (height, width))
        tokens = self.norm(self.backbone(features)[-1])
        places = tokens[:, :, self.backbone.special :]
        points = inverse_log(self.point(places)).unflatten(2, (height, width))
        depth = self.depth(places).exp().unflatten(2, (height, width))
        return Prediction(points, depth, [camera_activation(self.camera(tokens[:, :, 0]))])


class FullReadout(nn.Module):
    """VidFM3D's ``ProbeModelPA`` (``vidfm3d/models/components/probe_pixalign.py``); 384 M parameters as published.

    Args:
        channels: of the features.
        width: of the tokens.
        heads: of the attention.
        features: width of the two dense heads.
        stages: channels of their four stages.
    """

    def __init__(
        self,
        channels: int,
        width: int = 1024,
        heads: int = 16,
        features: int = 256,
        stages: Sequence[int] = (256, 512, 1024, 1024),
    ) -> None:
        super().__init__()
        self.backbone = Backbone(channels, width, len(stages), heads)
        self.camera_head = CameraHead(2 * width, heads)
        self.point_head = PointDepthHead(2 * width, 4, features, stages)
        self.depth_head = PointDepthHead(2 * width, 2, features, stages)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Prediction:
        """Features ``[B, S, C, h, w]`` to a prediction of any ``size`` (height, width)."""
        pairs = self.backbone(features)
        places = [pair[:, :, self.backbone.special :] for pair in pairs]
        grid = (features.shape[-2], features.shape[-1])
        # The last channel of both is a confidence, which no loss uses.
        points = inverse_log(self.point_head(places, grid, size)[..., :-1])
        depth = self.depth_head(places, grid, size)[..., :-1].exp()
        return Prediction(points, depth, self.camera_head(pairs[-1][:, :, 0]))


class CameraHead(nn.Module):
    """Nine numbers from the camera tokens, refined four times (``vidfm3d/vggt/heads/camera_head.py``)."""

    def __init__(self, dim: int, heads: int = 16, depth: int = 4, rounds: int = 4) -> None:
        super().__init__()
        self.rounds = rounds
        self.trunk = nn.Sequential(*(Block(dim, heads, normalised=False) for _ in range(depth)))
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Camera tokens ``[B, S, D]`` to the refinements, each ``[B, S, 9]``."""
        tokens = self.token_norm(tokens)
        camera: Tensor | None = None
        refined = []
        for _ in range(self.rounds):
            given = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if camera is None else camera.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(given)).chunk(3, dim=-1)
            told = tokens + gate * (self.adaln_norm(tokens) * (1 + scale) + shift)
            change = self.pose_branch(self.trunk_norm(self.trunk(told)))
            camera = change if camera is None else camera.detach() + change
            refined.append(camera_activation(camera))
        return refined
