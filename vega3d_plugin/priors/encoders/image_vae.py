"""The image VAE of Stable Diffusion 2.1 alone (released ``VAEOnlineEncoder``): what a latent knows before any
generator has seen it. Also the loader of image VAEs that other families use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PriorError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.weights import DIFFUSERS, Tensors
from ..catalogue.image_vae import VaeOptions
from ..frozen.components import load_component, locate_parts, read_config
from ..frozen.prior import FrozenPrior, Reload

# The names that diffusers gave to the parts of an attention before 2023; published weights still have them.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class VaePrior(FrozenPrior):
    """Latents of an image VAE, averaged in windows.

    Args:
        vae: diffusers' ``AutoencoderKL``; only its encoder is used.
        settings: resolved settings; ``size`` must be divisible by the VAE's stride of 8; where it is not by 8 times
            ``pool``, the last row or column is dropped, as released.
        reload: rebuilds this prior from its settings; None pickles the weights.

    Raises:
        PriorError: a size that does not fit, or a tap.
    """

    family = "vae"
    identity: ClassVar[tuple[str, ...]] = ("size", "resize")

    def __init__(self, vae: nn.Module, settings: PriorSettings, reload: Reload | None = None) -> None:
        config: Any = vae.config
        if settings.tap is not None:
            raise PriorError(
                f"Prior {settings.name!r} gives the VAE's latents and has no blocks to choose from, got "
                f"tap={settings.tap}. Leave it out, or use the prior 'sd2.1'."
            )
        self.pool: int = VaeOptions.parse(settings.options).pool
        super().__init__(
            {"vae": vae},
            settings,
            feature_dim=config.latent_channels,
            stride=vae_stride(config),
            reload=reload,
        )

    def more_identity(self) -> dict[str, Any]:
        """Also the scale of the latents."""
        return {**super().more_identity(), "scaling_factor": self._scale}

    def extract(self, frames: Tensor) -> Tensor:
        """Checked frames ``[T, 3, H, W]`` to ``[T, z, h / pool, w / pool]``: scaled means, without noise."""
        vae: Any = self.models["vae"]
        count = frames.shape[0]
        size = self.chunk((self.size[0] // self.stride) * (self.size[1] // self.stride))
        parts = []
        for start in range(0, count, size):
            pixels = (self.pixels(frames[start : start + size]) * 2 - 1).to(self.dtype)
            latents = vae.encode(pixels).latent_dist.mode() * self._scale
            parts.append(F.avg_pool2d(latents, self.pool) if self.pool > 1 else latents)
            self.report("VAE", min(start + size, count), count)
        return torch.cat(parts)

    @property
    def _scale(self) -> float:
        # 0.18215 for every Stable Diffusion before XL, where the released code has it as a constant.
        config: Any = self.models["vae"].config
        return float(config.scaling_factor)


def load_vae(folder: Path, kind: str = "AutoencoderKL") -> Any:
    """diffusers' image VAE of a component's folder, without its decoder.

    Args:
        folder: of the component.
        kind: name of the class, ``AutoencoderKL`` or ``AutoencoderKLTemporalDecoder``.

    Raises:
        CheckpointError: missing, damaged, or of another architecture.
    """
    import diffusers

    config = read_config(folder, kind)

    def build() -> Any:
        vae = getattr(diffusers, kind).from_config(config)
        vae.decoder = None
        if hasattr(vae, "post_quant_conv"):
            vae.post_quant_conv = None
        return vae

    def rename(tensors: Tensors) -> Tensors:
        return {_new_name(key): tensor for key, tensor in tensors.items()}

    return load_component(folder, build, wanted=lambda key: key.startswith(("encoder.", "quant_conv.")), rename=rename)


def vae_stride(config: Any) -> int:
    """Pixels per latent."""
    return int(2 ** (len(config.block_out_channels) - 1))


def _new_name(key: str) -> str:
    for old, new in _OLD_NAMES.items():
        key = key.replace(old, new)
    return key


def load(settings: PriorSettings) -> Prior:
    """Build the prior from ``settings.pretrained``: a Stable Diffusion checkpoint, or a folder that holds a VAE alone.

    Raises:
        CheckpointError: the folder is missing, incomplete, or holds another architecture.
        PriorError: a tap.
    """
    folder = locate_parts(settings, {"vae": DIFFUSERS}, ["config.json", f"{DIFFUSERS}.safetensors"])[0]
    if not (folder / "vae").is_dir() and (folder / "config.json").is_file():
        return VaePrior(load_vae(folder), settings, reload=load)
    if not (folder / "vae").is_dir():
        raise CheckpointError(
            f"{folder} has no vae/, and is no VAE itself: expected vae/config.json and "
            "vae/diffusion_pytorch_model.safetensors, as in a Stable Diffusion checkpoint."
        )
    return VaePrior(load_vae(folder / "vae"), settings, reload=load)
