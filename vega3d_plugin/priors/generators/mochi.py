"""Mochi 1 (Genmo) as a prior, on diffusers' ``MochiTransformer3DModel``.

Conventions are those of diffusers' ``MochiPipeline``, whose timesteps run the other way: they are 1000 times the share
of DATA (its scheduler inverts its sigmas), so the transformer is given ``1000 * (1 - sigma)`` where ``sigma`` is our
share of noise. The path is the same straight one, ``(1 - sigma) * z0 + sigma * noise``.

No text means, in Genmo's code and in the pipeline with ``force_zeros_for_empty_prompt``, that every token is masked:
the pooled text is then a constant and the video tokens see themselves alone. T5 is not needed for that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors
from ..diffusion.families import DiffusersFamily, diffusers_class
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.video_transformer import VideoTransformerPrior, per_channel, prompt_mask, without_padding
from ..frozen.components import until
from ..frozen.prior import Reload
from ..prompts.by_pipeline import prompt_tensor

EMBEDS, MASK = "prompt_embeds", "prompt_attention_mask"

# The repository also has the weights in bfloat16 and in Genmo's own layout, which are not needed.
WEIGHT_PATTERNS = [
    f"{part}/{name}"
    for part in ("transformer", "vae")
    for name in ("config.json", "diffusion_pytorch_model.safetensors*", "diffusion_pytorch_model-*")
] + ["empty_prompt.safetensors"]


class MochiPrior(VideoTransformerPrior):
    """Features of Mochi.

    Args:
        transformer: diffusers' ``MochiTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLMochi``; only its encoder is used.
        prompt: ``prompt_embeds [1, n, text_dim]`` and ``prompt_attention_mask [1, n]``.
        settings: resolved settings; ``size`` must be divisible by 16.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    family = "mochi"

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        ratios: Any = vae
        super().__init__(
            transformer,
            vae,
            prompt,
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size,
            vae_stride=ratios.spatial_compression_ratio,
            time_stride=ratios.temporal_compression_ratio,
            reload=reload,
        )

    def more_identity(self) -> dict[str, Any]:
        """Also the statistics of the latents."""
        config = self.vae.config
        values = (*(config.latents_mean or ()), *(config.latents_std or ()), config.scaling_factor)
        return {**super().more_identity(), "latents": [round(value, 2) for value in values]}

    @property
    def pixel_dtype(self) -> torch.dtype:
        """float32: the encoder's first step takes sines of up to 800 radians per unit, which bfloat16 would drown."""
        return torch.float32

    def noise_level(self) -> NoiseLevel:
        """The timestep is 1000 times the share of data: 0 is all noise, 1000 none."""
        sigma = super().noise_level().sigma
        return NoiseLevel(1000 * (1 - sigma), sigma)

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]``, scaled to mean 0 and variance 1 per channel."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean = (mean - per_channel(config.latents_mean, mean)) / per_channel(config.latents_std, mean)
        scale: float = config.scaling_factor
        return mean * scale

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there."""
        batch = noisy.shape[0]
        self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=self.prompt(EMBEDS, batch),
            timestep=torch.full((batch,), self.noise_level().tau, device=noisy.device),
            encoder_attention_mask=self.prompt(MASK, batch),
            return_dict=False,
        )

    def _encoded(self, video: Tensor) -> Tensor:
        hook = self.vae.encoder.fourier_features.register_forward_hook(lambda module, args, out: out.to(self.dtype))
        try:
            return super()._encoded(video)
        finally:
            hook.remove()


class Mochi(DiffusersFamily):
    """Mochi in diffusers' layout."""

    prior = MochiPrior
    transformer, vae, pipeline = "MochiTransformer3DModel", "AutoencoderKLMochi", "MochiPipeline"
    weights = WEIGHT_PATTERNS

    def cut(self, config: JsonObject, tap: int) -> tuple[Callable[[], Any], Callable[[str], bool]]:
        """Cut and not built shorter: the last block of a Mochi lacks what only leads to further text tokens."""

        def build() -> Any:
            model = diffusers_class(self.transformer).from_config(config)
            del model.transformer_blocks[tap + 1 :]
            return model

        return build, until("transformer_blocks", tap)

    def _prompt_of(self, folder: Path, is_local: bool, settings: PriorSettings, config: JsonObject) -> Tensors:
        if settings.options["prompt"] == "zeros":
            return _no_text(config.integer("text_embed_dim"))
        return super()._prompt_of(folder, is_local, settings, config)

    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """By T5."""
        embeds, mask, _, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
        return _without_padding(embeds, mask.bool())

    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """``prompt_embeds`` and ``prompt_attention_mask``, without padding."""
        embeds = prompt_tensor(found, EMBEDS, config.integer("text_embed_dim"))
        return _without_padding(embeds, prompt_mask(found, MASK, embeds.shape[1]))


def _without_padding(embeds: Tensor, mask: Tensor) -> Tensors:
    # What a text encoder gives where everything is masked may be NaN, so it is never kept.
    if not bool(mask.any()):
        return _no_text(embeds.shape[2])
    embeds, mask = without_padding(embeds, mask)
    return {EMBEDS: embeds, MASK: mask}


def _no_text(width: int) -> Tensors:
    return {EMBEDS: torch.zeros(1, 1, width), MASK: torch.zeros(1, 1, dtype=torch.bool)}


FAMILY = Mochi()
