"""A third party's plugin: a host of its own with an adapter, a prior and a fuser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hookspecs import RegisterFuser

# A plugin may use the library while it is imported.
SETTINGS = vega3d.PriorSettings(name="tiny-wan", timestep=100)

STATISTICS = vega3d.PixelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class ToyEye(nn.Module):
    """Cuts pictures ``[B, 3, H, W]`` into patches: tokens ``[B, h * w, D]``."""

    def __init__(self, patch: int, hidden_size: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(3, hidden_size, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embed(pixels).flatten(2).transpose(1, 2).contiguous()


class ToyHost(nn.Module):
    """Answers with two numbers per picture."""

    def __init__(self, patch: int = 4, hidden_size: int = 8) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eye = ToyEye(patch, hidden_size)
        self.mind = nn.Linear(hidden_size, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.mind(self.eye(pixels).mean(dim=1))


@dataclass(frozen=True)
class ToyReader:
    """Every picture is a clip of its own."""

    patch: int

    def read(self, call: SeamCall) -> SeamInput:
        (pixels,) = call.args
        frames = STATISTICS.unnormalise(pixels)
        grid = vega3d.TokenGrid(1, pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return SeamInput(call.output.flatten(0, 1), [vega3d.Clip(frame[None], grid, "image") for frame in frames])

    def write(self, output: Tensor, tokens: Tensor) -> Tensor:
        return tokens.reshape(output.shape)

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        return "pixels"

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        return None


class ToyAdapter:
    name = "toy"
    summary = "ToyHost"
    classes: Sequence[str] = ("ToyHost",)

    def matches(self, model: nn.Module) -> bool:
        return type(model).__name__ == "ToyHost"

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[vega3d.Seam]:
        eye: Any = model.eye
        return [vega3d.Seam("eye", "", model.hidden_size, 1, STATISTICS, "family", ToyReader(eye.patch))]  # type: ignore[arg-type]


class Colours(vega3d.Prior):
    """Mean colours of an 8 x 8 raster, and their squares, times a strength."""

    feature_dim = 6

    def __init__(self, settings: vega3d.PriorSettings) -> None:
        self.settings = settings
        self.strength = float(settings.options.get("strength", 1.0))
        self.fingerprint = f"colours-{self.strength}"

    def __call__(self, frames: Tensor) -> Tensor:
        colours = F.adaptive_avg_pool2d(frames, (8, 8))
        return self.strength * torch.cat([colours, colours**2], dim=1)


class Louder(vega3d.Fuser):
    """``sem + volume * gen``, silent at the start."""

    name = "third-party-fuser"
    identity = "own"

    def __init__(self, hidden_size: int, *, volume: float = 1.0) -> None:
        super().__init__(hidden_size)
        self.volume = nn.Parameter(torch.full((1,), volume))

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        return semantic + self.volume * generative

    @torch.no_grad()
    def make_identity(self) -> None:
        self.volume.zero_()


class Plugin:
    """What the entry point names. An object of a class, where the built-in plugins are modules."""

    @vega3d.hookimpl
    def vega3d_register_hosts(self, register: Callable[[vega3d.HostAdapter], None]) -> None:
        register(ToyAdapter())

    @vega3d.hookimpl
    def vega3d_register_priors(self, register: Callable[[vega3d.PriorSpec], None]) -> None:
        register(vega3d.PriorSpec("third-party", Colours, "mean colours", feature_dim=6))

    @vega3d.hookimpl
    def vega3d_register_fusers(self, register: RegisterFuser) -> None:
        register(Louder)
        register(Louder, name="third-party-fuser-2")


plugin = Plugin()
