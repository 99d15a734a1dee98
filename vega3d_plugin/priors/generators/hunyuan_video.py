"""HunyuanVideo (Tencent, arXiv 2412.03603) as a prior, on diffusers' ``HunyuanVideoTransformer3DModel``.

The transformer has two stacks: dual-stream blocks, where video and text have weights of their own, then single-stream
blocks, where both share them. The tap counts over both: of the released model, 0 to 19 are dual, 20 to 59 single. A
feature is what a block gives for the video tokens; diffusers keeps them apart from the text in both kinds.

Conventions are those of diffusers' ``HunyuanVideoPipeline``: timesteps are 1000 times the share of noise, the guidance
that was distilled into the model is an input, the prompt is put into a template before it is encoded by Llama 3, and
CLIP's pooled embedding comes beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ...contracts.errors import CheckpointError
from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import Float, PriorSettings, Settings
from ...storage.weights import Tensors
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.prior import ALL_CONTEXTS
from ..diffusion.video_transformer import VideoTransformerPrior, load_encoder, number_of, prompt_mask, without_padding
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..prompts.by_pipeline import pipeline_prompt, prompt_tensor

EMBEDS, MASK, POOLED = "prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"
DUAL, SINGLE = "transformer_blocks", "single_transformer_blocks"

WEIGHT_PATTERNS = ["transformer/*", "vae/*", "empty_prompt.safetensors"]
TEXT_PATTERNS = ["text_encoder/*", "text_encoder_2/*", "tokenizer/*", "tokenizer_2/*", "model_index.json"]


class HunyuanVideoOptions(Settings):
    """Settings of HunyuanVideo alone.

    Attributes:
        guidance: strength of the guidance that was distilled into the model (pipeline: 6); an input like the
            timestep, no second forward.
    """

    guidance: Float = Field(default=6.0, ge=0)


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


def load_hunyuan_video(settings: PriorSettings) -> Prior:
    """Build the prior from ``settings.pretrained``, a folder or a hub id, in diffusers' layout.

    Raises:
        CheckpointError: the folder is missing, half there, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoders to compute it.
        PriorError: a tap outside the blocks, or a size that does not fit.
    """
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    config = _transformer_config(folder)
    transformer, tap = _transformer(folder, config, settings)
    vae = _vae(folder)
    prompt = _prompt_of(folder, is_local, settings, config)
    return HunyuanVideoPrior(
        transformer, vae, prompt, settings.model_copy(update={"tap": tap}), reload=load_hunyuan_video
    )


def _transformer_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder / "transformer", "HunyuanVideoTransformer3DModel")
    kind = config.get("image_condition_type")
    if kind is not None or config.get("in_channels") != config.get("out_channels"):
        raise CheckpointError(
            f"{folder} holds an image-to-video HunyuanVideo (image_condition_type {kind!r}, "
            f"{config.get('in_channels')} channels in, {config.get('out_channels')} out); this prior needs "
            "text-to-video weights, such as hunyuanvideo-community/HunyuanVideo."
        )
    return config


def _transformer(folder: Path, config: dict[str, Any], settings: PriorSettings) -> tuple[Any, int]:
    from diffusers import HunyuanVideoTransformer3DModel

    file = folder / "transformer" / "config.json"
    dual, single = number_of(config, "num_layers", file), number_of(config, "num_single_layers", file)
    tap = resolved_tap(settings.tap, dual + single, settings.name)
    config = {**config, "num_layers": min(tap + 1, dual), "num_single_layers": max(0, tap + 1 - dual)}
    is_dual, is_single = until(DUAL, tap), until(SINGLE, tap - dual)
    transformer = load_component(
        folder / "transformer",
        lambda: HunyuanVideoTransformer3DModel.from_config(config),
        wanted=lambda key: is_dual(key) and is_single(key),
    )
    return transformer, tap


def _vae(folder: Path) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    config = read_config(folder / "vae", "AutoencoderKLHunyuanVideo")
    return load_encoder(folder / "vae", lambda: AutoencoderKLHunyuanVideo.from_config(config))


# Prompt


def _prompt_of(folder: Path, is_local: bool, settings: PriorSettings, config: dict[str, Any]) -> Tensors:
    found = pipeline_prompt(folder, settings, is_local, "HunyuanVideoPipeline", _encoded_prompt, TEXT_PATTERNS)
    embeds = prompt_tensor(found, EMBEDS, int(config["text_embed_dim"]))
    # The transformer averages over the tokens that count.
    mask = prompt_mask(found, MASK, embeds.shape[1], needs_text=True)
    pooled = prompt_tensor(found, POOLED, int(config["pooled_projection_dim"]), lengths={1})
    embeds, mask = without_padding(embeds, mask)
    return {EMBEDS: embeds, MASK: mask, POOLED: pooled[:, 0]}


def _encoded_prompt(pipe: Any) -> Tensors:
    embeds, pooled, mask = pipe.encode_prompt("")
    embeds, mask = without_padding(embeds, mask.bool())
    return {EMBEDS: embeds, MASK: mask, POOLED: pooled}


def _prompt(settings: PriorSettings) -> Tensors:
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    return _prompt_of(folder, is_local, settings, _transformer_config(folder))


SPECS = (
    PriorSpec(
        "hunyuan-video",
        load_hunyuan_video,
        "HunyuanVideo text-to-video, 13B, 20 dual-stream and 40 single-stream blocks",
        source="hunyuanvideo-community/HunyuanVideo",
        feature_dim=3072,
        contexts=ALL_CONTEXTS,
        # Two thirds of the depth, as the paper's tap in Wan; also the middle of the single-stream blocks, where the
        # video tokens have long seen each other and are not yet turned into a velocity. 540p is one of the sizes it
        # was trained at, and it was trained on 129 frames, which are 33 latent steps.
        defaults={"tap": 40, "size": (544, 960), "shift": 7.0, "window": 33, "overlap": 4},
        options=HunyuanVideoOptions,
        prompt=_prompt,
        licence="Tencent Hunyuan Community License (not for use in the EU, the UK and South Korea)",
        taps="0 to 19: dual-stream blocks, 20 to 59: single-stream blocks",
        parameters=10.0,
        kind=HunyuanVideoPrior,
    ),
)
