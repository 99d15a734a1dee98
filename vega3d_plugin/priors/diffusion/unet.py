"""diffusers' conditional UNets, cut behind the stage that is tapped.

A UNet of ``n`` down blocks has ``2n + 1`` stages: taps 0 to ``n - 1`` are the outputs of its down blocks, ``n`` that of
the mid block, ``n + 1`` to ``2n`` those of the up blocks. The released code takes the INPUT of the mid block, which is
the last down block's output, tap ``n - 1``: so none of the heavier half behind it is ever read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ...contracts.errors import CheckpointError
from ...contracts.settings import PriorSettings
from ..frozen.components import load_component
from ..frozen.prior import resolved_tap
from .prior import DiffusionPrior


class Stage(NamedTuple):
    """Attributes: ``tap``, its index; ``channels`` of its output; ``divisor``, what the latents' height and width must
    be divisible by."""

    tap: int
    channels: int
    divisor: int


def stage(config: Mapping[str, Any], settings: PriorSettings) -> Stage:
    """The stage that ``settings.tap`` names, by default the input of the mid block.

    Raises:
        PriorError: a tap out of range.
    """
    widths = list(config["block_out_channels"])
    last = len(widths) - 1
    tap = last if settings.tap is None else resolved_tap(settings.tap, 2 * len(widths) + 1, settings.name)
    if tap <= last + 1:
        # Every down block halves the map and rounds up.
        return Stage(tap, widths[min(tap, last)], 1)
    # Up blocks meet the maps of the down blocks again, which they do only where every halving was even.
    return Stage(tap, widths[2 * last + 2 - tap], 2**last)


def load_unet(folder: Path, kind: str, config: Mapping[str, Any], until: Stage) -> Any:
    """diffusers' UNet of a checkpoint; called as ever, its ``sample`` is the output of the stage ``until``.

    Args:
        folder: of the component.
        kind: name of the class.
        config: of the component.
        until: the last stage to load.
    """
    import diffusers

    names = _stages(config)
    later = (*names[until.tap + 1 :], "conv_norm_out", "conv_out")

    def build() -> Any:
        unet = getattr(diffusers, kind).from_config(config)
        for name in ("down_blocks", "up_blocks"):
            kept = sum(entry.startswith(name) for entry in names[: until.tap + 1])
            setattr(unet, name, getattr(unet, name)[:kept])
        if "mid_block" in later:
            unet.mid_block = Through()
        unet.conv_norm_out, unet.conv_act, unet.conv_out = Through(), Through(), Through()
        return unet

    def wanted(key: str) -> bool:
        return not key.startswith(tuple(f"{name}." for name in later))

    return load_component(folder, build, wanted=wanted)


def check_channels(config: Mapping[str, Any], latents: int, expected: int, file: Path) -> None:
    """Refuse a UNet that takes other inputs: inpainting, depth, image editing, or another VAE's latents."""
    if config.get("in_channels") != expected:
        raise CheckpointError(
            f"{file} takes {config.get('in_channels')} channels, this prior gives it {expected} (latents have "
            f"{latents}). Is it an inpainting or a depth model? Use the base model."
        )


class Through(nn.Module):
    """Stands for a stage that is not needed, and hands on what enters it."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the first argument."""
        return hidden_states


def _stages(config: Mapping[str, Any]) -> list[str]:
    count = len(config["block_out_channels"])
    return [*(f"down_blocks.{i}" for i in range(count)), "mid_block", *(f"up_blocks.{i}" for i in range(count))]


class UNetPrior(DiffusionPrior):
    """What priors of a UNet share: models ``unet`` and ``vae``; ``vae_stride`` is set before the base is."""

    identity: ClassVar[tuple[str, ...]] = ("timestep", "tap", "size", "resize", "context", "seed")
    #: Pixels per latent pixel, in height and width.
    vae_stride: int

    @property
    def unet(self) -> Any:
        """diffusers' UNet, cut behind the tap."""
        return self.models["unet"]

    @property
    def vae(self) -> Any:
        """diffusers' VAE, without its decoder."""
        return self.models["vae"]

    @property
    def tokens_per_frame(self) -> int:
        """Latent pixels of a frame, which the first blocks attend across."""
        return (self.size[0] // self.vae_stride) * (self.size[1] // self.vae_stride)
