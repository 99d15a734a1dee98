"""What diffusers' video transformers have in common: a causal video VAE, one stack of tokens, a norm behind the blocks.

Families fill in how latents are scaled and how the transformer is called.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.settings import PriorSettings
from ..frozen.components import load_component
from ..frozen.prior import Reload
from ..frozen.taps import asked, inputs_of
from .prior import DiffusionPrior


class VideoTransformerPrior(DiffusionPrior):
    """Features of a video transformer of diffusers that normalises its last block's output with ``norm_out``.

    Args:
        transformer: whose LAST block is the tap.
        vae: of which only the encoder is used; maps ``[B, 3, 1 + time_stride * k, H, W]`` to ``1 + k`` steps.
        prompt: tensors that stand for the empty prompt, by name.
        settings: resolved settings; ``size`` must be divisible by the VAE's stride times the patch size.
        feature_dim: width of the transformer.
        patch_size: latent pixels per token, in height and width.
        vae_stride: pixels per latent pixel, in height and width.
        time_stride: frames per latent step, but for the first step.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Mapping[str, Tensor],
        settings: PriorSettings,
        *,
        feature_dim: int,
        patch_size: int,
        vae_stride: int,
        time_stride: int,
        reload: Reload | None = None,
    ) -> None:
        self.patch_size = patch_size
        self.time_stride = time_stride
        super().__init__(
            {"transformer": transformer, "vae": vae},
            settings,
            feature_dim=feature_dim,
            stride=vae_stride * patch_size,
            tensors=prompt,
            reload=reload,
        )

    # What a family fills in

    @abstractmethod
    def normalised(self, mean: Tensor) -> Tensor:
        """The VAE's mean ``[B, z, T, h, w]``, float32, scaled as the transformer expects it."""

    @abstractmethod
    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """Call the transformer on noisy latents ``[B, z, T, h, w]`` in the compute dtype; what it returns is unused.

        ``inputs`` are those that depend on the clip, as :meth:`tapped` was given them.
        """

    @property
    def output_norm(self) -> nn.Module:
        """The norm behind the last block, with nothing between."""
        norm: nn.Module = self.transformer.norm_out
        return norm

    # What all families share

    @property
    def transformer(self) -> Any:
        """diffusers' transformer, cut after the tap."""
        return self.models["transformer"]

    @property
    def vae(self) -> Any:
        """diffusers' VAE, without its decoder."""
        return self.models["vae"]

    def taps(self) -> range:
        """The transformer's blocks that are there."""
        return range(len(self.tapped_blocks()))

    def tapped_blocks(self) -> list[nn.Module]:
        """The blocks that tokens go through one after the other, in the order of the taps."""
        return self.repeated_parts()

    def repeated_parts(self) -> list[nn.Module]:
        """The transformer's blocks; not all of these classes of diffusers name them for ``compile``."""
        blocks = [self.transformer.transformer_blocks, getattr(self.transformer, "single_transformer_blocks", ())]
        return [block for stack in blocks for block in stack]

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1], each a video of one frame, to normalised latents ``[B, z, h, w]``."""
        return self._encoded(pixels[:, :, None])[:, :, 0]

    def video_latents(self, pixels: Tensor) -> Tensor:
        """``[1 + time_stride * k, 3, H, W]`` in [-1, 1] to normalised latents ``[1 + k, z, h, w]``."""
        return self._encoded(pixels.transpose(0, 1)[None])[0].transpose(0, 1)

    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """``[B, T, z, h, w]`` to the last block's output as maps ``[B, T, C, h / patch, w / patch]``."""
        return self.as_maps(self.tapped(noisy), noisy)

    def tapped(self, noisy: Tensor, **inputs: Tensor) -> Tensor:
        """Noisy latents ``[B, T, z, h, w]`` to the last block's tokens ``[B, L, C]``, as they enter the norm.

        Of several taps, where :meth:`at_taps` asks for them: joined along the channels.
        """
        behind = [*self.tapped_blocks()[1:], self.output_norm]
        with inputs_of([behind[tap] for tap in asked(self, own=-1)]) as kept:
            self.run(noisy.transpose(1, 2).to(self.dtype), **inputs)
        tokens = [tokens.to(self.dtype) for tokens in kept]
        return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=-1)

    def as_maps(self, tokens: Tensor, noisy: Tensor) -> Tensor:
        """Tokens ``[B, L, C]`` of noisy latents ``[B, T, z, h, w]`` to ``[B, T, C, h / patch, w / patch]``."""
        _, steps, _, height, width = noisy.shape
        maps: Tensor = tokens.unflatten(1, (steps, height // self.patch_size, width // self.patch_size))
        return maps.movedim(-1, 2)

    def prompt(self, name: str, batch: int) -> Tensor:
        """One of the prompt's tensors ``[1, ...]``, for a batch; in the compute dtype unless it is a mask."""
        tensor = self.tensors[name].to(self.device)
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensor.expand(batch, *tensor.shape[1:])

    def _encoded(self, video: Tensor) -> Tensor:
        return self.normalised(self.vae.encode(video).latent_dist.mode().float())


def per_channel(values: Any, like: Tensor) -> Tensor:
    """Numbers per latent channel, to be broadcast over ``[B, z, T, h, w]``."""
    return like.new_tensor(values).view(1, -1, 1, 1, 1)


def load_encoder(folder: Path, build: Callable[[], Any]) -> Any:
    """A VAE without its decoder, which is never read."""

    def without_decoder() -> Any:
        vae = build()
        vae.decoder = None
        if hasattr(vae, "post_quant_conv"):
            vae.post_quant_conv = None
        return vae

    return load_component(
        folder, without_decoder, wanted=lambda key: not key.startswith(("decoder.", "post_quant_conv."))
    )


def prompt_mask(tensors: Mapping[str, Tensor], name: str, tokens: int, needs_text: bool = False) -> Tensor:
    """The mask ``[1, tokens]`` that belongs to an embedding, boolean: True for tokens that count.

    Raises:
        PromptError: none of that name, or of another shape; or one that leaves out every token, where at least one is
            needed (``needs_text``).
    """
    mask = tensors.get(name)
    mask = mask[None] if mask is not None and mask.ndim == 1 else mask
    if mask is None or mask.shape != (1, tokens):
        found = "none" if mask is None else f"one of shape {list(mask.shape)}"
        raise PromptError(
            f"The empty prompt needs a mask {name} of shape [1, {tokens}], found {found} among "
            f"{', '.join(sorted(tensors))}. Export the empty prompt again."
        )
    if needs_text and not bool(mask.any()):
        raise PromptError(f"The empty prompt's {name} leaves out every token. Export the empty prompt again.")
    return mask.bool()


def without_padding(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings ``[1, n, C]`` and mask ``[1, n]`` up to the last token that counts: nobody sees those behind it."""
    end = int(mask[0].nonzero().max()) + 1 if bool(mask.any()) else 1
    return embeds[:, :end], mask[:, :end]


def number_of(config: Mapping[str, Any], key: str, file: Path | str) -> int:
    """A whole number above zero from a model's configuration.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{file} gives {key} as {value!r}, expected a number of at least 1.")
    return value
