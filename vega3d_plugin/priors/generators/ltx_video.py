"""LTX-Video text-to-video (HaCohen et al., 2024) on diffusers' own classes: ``LTXVideoTransformer3DModel`` and the
encoder of ``AutoencoderKLLTXVideo``.

Its VAE makes one token of 32x32 pixels and, within a video, 8 frames, so it is cheap and its maps are coarse.
Rectified flow: timestep ``t`` of the schedule is a share of ``t / 1000`` of noise, and the transformer is given ``t``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...contracts.errors import CheckpointError
from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import PriorSettings, Settings
from ..diffusion.flow_matching import TRAIN_TIMESTEPS, NoiseLevel
from ..diffusion.prior import ALL_CONTEXTS
from ..diffusion.video_transformer import VideoTransformerPrior, load_encoder, number_of, per_channel, prompt_mask
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..prompts.by_pipeline import pipeline_prompt, prompt_tensor

WEIGHT_PATTERNS = ["transformer/*", "vae/*", "empty_prompt.safetensors"]
TEXT_PATTERNS = ["text_encoder/*", "tokenizer/*", "model_index.json"]
PROMPT, MASK = "prompt_embeds", "prompt_attention_mask"


class LTXVideoOptions(Settings):
    """Settings of LTX-Video alone.

    Attributes:
        frame_rate: frames per second, > 0, by which the transformer counts time; matters in contexts ``views`` and
            ``video`` (diffusers' pipeline: 25).
    """

    frame_rate: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 25.0


class LTXVideoPrior(VideoTransformerPrior):
    """Features of an LTX-Video transformer.

    Args:
        transformer: diffusers' ``LTXVideoTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLLTXVideo``; only its encoder is used.
        prompt: embedding of the empty prompt, ``[1, tokens, text_dim]``, padding included.
        mask: which of its tokens count, ``[1, tokens]``.
        settings: resolved settings; ``shift`` does not matter: a timestep is a share of noise.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    family = "ltx-video"
    identity: ClassVar[tuple[str, ...]] = ("timestep", "tap", "size", "resize", "context", "seed")

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensor,
        mask: Tensor,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        parts: Any = vae
        self.frame_rate = LTXVideoOptions.parse(settings.options).frame_rate
        super().__init__(
            transformer,
            vae,
            # The latents' statistics are no parameters, but features depend on them.
            {PROMPT: prompt, MASK: mask, "mean": parts.latents_mean, "std": parts.latents_std},
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=1,
            vae_stride=int(parts.spatial_compression_ratio),
            time_stride=int(parts.temporal_compression_ratio),
            reload=reload,
        )

    # Noise

    def noise_level(self) -> NoiseLevel:
        """The timestep, and a thousandth of it as the share of noise."""
        return NoiseLevel(self.settings.timestep, self.settings.timestep / TRAIN_TIMESTEPS)

    # VAE

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]`` to zero mean and unit variance, scaled."""
        offset, scale = (per_channel(self.tensors[key].tolist(), mean) for key in ("mean", "std"))
        latents: Tensor = (mean - offset) * float(self.vae.config.scaling_factor) / scale
        return latents

    # Transformer

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there."""
        batch, _, steps, height, width = noisy.shape
        self.transformer(
            # One token per latent, in raster order.
            hidden_states=noisy.movedim(1, -1).flatten(1, 3),
            encoder_hidden_states=self.prompt(PROMPT, batch),
            encoder_attention_mask=self.prompt(MASK, batch),
            timestep=torch.full((batch,), float(self.noise_level().tau), device=noisy.device),
            num_frames=steps,
            height=height,
            width=width,
            # Positions in seconds and pixels.
            rope_interpolation_scale=(self.time_stride / self.frame_rate, self.stride, self.stride),
            return_dict=False,
        )


def load_ltx_video(settings: PriorSettings) -> Prior:
    """Build an LTX-Video prior from ``settings.pretrained``, a folder in diffusers' layout or a hub id.

    Raises:
        CheckpointError: the folder is missing, half there, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoder to compute it.
    """
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    config = _transformer_config(folder)
    vae_config = read_config(folder / "vae", "AutoencoderKLLTXVideo")
    tap = resolved_tap(settings.tap, config["num_layers"], settings.name)
    prompt = _prompt_of(folder, settings, is_local, config)
    transformer = load_component(
        folder / "transformer",
        lambda: LTXVideoTransformer3DModel.from_config({**config, "num_layers": tap + 1}),
        wanted=until("transformer_blocks", tap),
    )
    vae = load_encoder(folder / "vae", lambda: AutoencoderKLLTXVideo.from_config(vae_config))
    settings = settings.model_copy(update={"tap": tap})
    return LTXVideoPrior(transformer, vae, prompt[PROMPT], prompt[MASK], settings, reload=load_ltx_video)


def load_prompt(settings: PriorSettings) -> dict[str, Tensor]:
    """The empty prompt's embedding ``[1, tokens, text_dim]`` and mask ``[1, tokens]``, without anything else."""
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    return _prompt_of(folder, settings, is_local, _transformer_config(folder))


def _transformer_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder / "transformer", "LTXVideoTransformer3DModel")
    file = folder / "transformer" / "config.json"
    number_of(config, "num_layers", file)
    if config.get("patch_size", 1) != 1 or config.get("patch_size_t", 1) != 1:
        raise CheckpointError(f"{file} has patches of several latents; this prior knows one token per latent.")
    return config


def _prompt_of(folder: Path, settings: PriorSettings, is_local: bool, config: Mapping[str, Any]) -> dict[str, Tensor]:
    def encode(pipeline: Any) -> dict[str, Tensor]:
        embeds, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
        return {PROMPT: embeds, MASK: mask}

    tensors = pipeline_prompt(folder, settings, is_local, "LTXPipeline", encode, TEXT_PATTERNS)
    embeds = prompt_tensor(tensors, PROMPT, int(config.get("caption_channels", 4096)))
    return {PROMPT: embeds, MASK: prompt_mask(tensors, MASK, embeds.shape[1], needs_text=True)}


SPECS = (
    PriorSpec(
        "ltx-video",
        load_ltx_video,
        "LTX-Video text-to-video, 2B, 28 blocks: fast, with coarse maps (32 pixels a feature)",
        source="Lightricks/LTX-Video",
        feature_dim=2048,
        contexts=ALL_CONTEXTS,
        # 161 frames, the pipeline's length, are 21 latent steps.
        defaults={"tap": 18, "timestep": 300, "size": (512, 704), "window": 21, "overlap": 4},
        options=LTXVideoOptions,
        prompt=load_prompt,
        kind=LTXVideoPrior,
        licence="LTX-Video Open Weights licence",
        taps="0 to 27: blocks of the transformer",
        parameters=1.5,
    ),
)
