"""HunyuanVideo (Tencent, arXiv 2412.03603) as a prior, on diffusers' ``HunyuanVideoTransformer3DModel``.

The transformer has two stacks: dual-stream blocks, where video and text have weights of their own, then single-stream
blocks, where both share them. The tap counts over both: of the released model, 0 to 19 are dual, 20 to 59 single. A
feature is what a block gives for the video tokens; diffusers keeps them apart from the text in both kinds.

Conventions are those of diffusers' ``HunyuanVideoPipeline``: timesteps are 1000 times the share of noise, the guidance
that was distilled into the model is an input, the prompt is put into a template before it is encoded by Llama 3, and
CLIP's pooled embedding comes beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors
from ..diffusion.families import DiffusersFamily, diffusers_class
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.video_transformer import VideoTransformerPrior, number_of, prompt_mask, without_padding
from ..frozen.components import until
from ..frozen.prior import Reload
from ..prompts.by_pipeline import prompt_tensor

EMBEDS, MASK, POOLED = "prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"
DUAL, SINGLE = "transformer_blocks", "single_transformer_blocks"


class HunyuanVideoPrior(VideoTransformerPrior):
    """Features of HunyuanVideo.

    Args:
        transformer: diffusers' ``HunyuanVideoTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLHunyuanVideo``; only its encoder is used.
        prompt: ``prompt_embeds [1, n, text_dim]``, ``prompt_attention_mask [1, n]`` and
            ``pooled_prompt_embeds [1, pooled_dim]``.
        settings: resolved settings; ``size`` must be divisible by 16.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    family = "hunyuan-video"

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        vae_config: Any = vae.config
        super().__init__(
            transformer,
            vae,
            prompt,
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size,
            vae_stride=vae_config.spatial_compression_ratio,
            time_stride=vae_config.temporal_compression_ratio,
            reload=reload,
        )

    def more_identity(self) -> dict[str, Any]:
        """Also the scale of the latents."""
        return {**super().more_identity(), "latents": self.vae.config.scaling_factor}

    def noise_level(self) -> NoiseLevel:
        """The timestep is 1000 times the share of noise, not cut to a whole number as Wan's."""
        sigma = super().noise_level().sigma
        return NoiseLevel(1000 * sigma, sigma)

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]``, scaled to unit variance."""
        scale: float = self.vae.config.scaling_factor
        return mean * scale

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there."""
        batch = noisy.shape[0]
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((batch,), self.settings.options["guidance"] * 1000.0, device=noisy.device)
        self.transformer(
            hidden_states=noisy,
            timestep=torch.full((batch,), self.noise_level().tau, device=noisy.device),
            encoder_hidden_states=self.prompt(EMBEDS, batch),
            encoder_attention_mask=self.prompt(MASK, batch),
            pooled_projections=self.prompt(POOLED, batch),
            guidance=guidance,
            return_dict=False,
        )


class HunyuanVideo(DiffusersFamily):
    """HunyuanVideo in diffusers' layout."""

    prior = HunyuanVideoPrior
    transformer, vae = "HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo"
    pipeline = "HunyuanVideoPipeline"
    texts = ("text_encoder/*", "text_encoder_2/*", "tokenizer/*", "tokenizer_2/*", "model_index.json")

    def check(self, config: JsonObject, folder: Path) -> None:
        """Refuse image-to-video weights."""
        kind = config.get("image_condition_type")
        if kind is not None or config.get("in_channels") != config.get("out_channels"):
            raise CheckpointError(
                f"{folder} holds an image-to-video HunyuanVideo (image_condition_type {kind!r}, "
                f"{config.get('in_channels')} channels in, {config.get('out_channels')} out); this prior needs "
                "text-to-video weights, such as hunyuanvideo-community/HunyuanVideo."
            )

    def blocks(self, config: JsonObject) -> int:
        """Of both stacks."""
        return sum(_stacks(config))

    def cut(self, config: JsonObject, tap: int) -> tuple[Callable[[], Any], Callable[[str], bool]]:
        """The tap counts over both stacks."""
        dual, _ = _stacks(config)
        shorter = {**config, "num_layers": min(tap + 1, dual), "num_single_layers": max(0, tap + 1 - dual)}
        is_dual, is_single = until(DUAL, tap), until(SINGLE, tap - dual)
        build = lambda: diffusers_class(self.transformer).from_config(shorter)  # noqa: E731
        return build, lambda key: is_dual(key) and is_single(key)

    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """By Llama, and CLIP's pooled text."""
        embeds, pooled, mask = pipeline.encode_prompt("")
        embeds, mask = without_padding(embeds, mask.bool())
        return {EMBEDS: embeds, MASK: mask, POOLED: pooled}

    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """``prompt_embeds``, ``prompt_attention_mask`` and ``pooled_prompt_embeds``."""
        embeds = prompt_tensor(found, EMBEDS, config.integer("text_embed_dim"))
        # The transformer averages over the tokens that count.
        mask = prompt_mask(found, MASK, embeds.shape[1], needs_text=True)
        pooled = prompt_tensor(found, POOLED, config.integer("pooled_projection_dim"), lengths={1})
        embeds, mask = without_padding(embeds, mask)
        return {EMBEDS: embeds, MASK: mask, POOLED: pooled[:, 0]}


def _stacks(config: JsonObject) -> tuple[int, int]:
    """Dual-stream and single-stream blocks."""
    return number_of(config, "num_layers", config.file), number_of(config, "num_single_layers", config.file)


FAMILY = HunyuanVideo()
