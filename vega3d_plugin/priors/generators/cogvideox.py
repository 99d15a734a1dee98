"""CogVideoX text-to-video (Yang et al., 2024) on diffusers' own classes: ``CogVideoXTransformer3DModel``, the encoder
of ``AutoencoderKLCogVideoX`` and the noise schedule of ``CogVideoXDDIMScheduler``.

A transformer in which text and video tokens attend to each other as one sequence; the features are the video tokens
after the tap. CogVideoX 1.5 puts two latent steps into one token. As in its training, what has one step too few is
preceded by a copy of its first step; so a single frame is two equal steps, each with noise of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PriorError
from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import NoOptions, PriorSettings
from ...storage.weights import read_json
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.prior import ALL_CONTEXTS
from ..diffusion.video_transformer import VideoTransformerPrior, load_encoder, number_of
from ..frozen.components import expect, load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..prompts.by_pipeline import pipeline_prompt, prompt_tensor

WEIGHT_PATTERNS = ["transformer/*", "vae/*", "scheduler/*", "empty_prompt.safetensors"]
TEXT_PATTERNS = ["text_encoder/*", "tokenizer/*", "model_index.json"]
PROMPT = "prompt_embeds"
# Both have the same levels of noise; they differ in how they step from one to the next.
SCHEDULERS = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}


class CogVideoXPrior(VideoTransformerPrior):
    """Features of a CogVideoX transformer.

    Args:
        transformer: diffusers' ``CogVideoXTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLCogVideoX``; only its encoder is used.
        prompt: embedding of the empty prompt, ``[1, tokens, text_dim]``, padding included.
        alphas: the schedule's cumulative product of alphas, ``[timesteps]``.
        settings: resolved settings; ``shift`` does not matter: the schedule has its own.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit, or that is beyond the positions that the model has.
    """

    family = "cogvideox"
    identity: ClassVar[tuple[str, ...]] = ("timestep", "tap", "size", "resize", "context", "seed")

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensor,
        alphas: Tensor,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        vae_config: Any = vae.config
        self.alphas = alphas
        #: Latent steps in one token.
        self.depth = int(config.patch_size_t or 1)
        vae_stride = 2 ** (len(vae_config.block_out_channels) - 1)
        super().__init__(
            transformer,
            vae,
            {PROMPT: prompt},
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size,
            vae_stride=vae_stride,
            time_stride=int(vae_config.temporal_compression_ratio) * self.depth,
            reload=reload,
        )
        limit = (config.sample_height * vae_stride, config.sample_width * vae_stride)
        if config.patch_size_t is not None and (self.size[0] > limit[0] or self.size[1] > limit[1]):
            raise PriorError(
                f"Prior {settings.name!r} has positions for {limit[0]}x{limit[1]} pixels at most, got "
                f"{self.size[0]}x{self.size[1]}. Use a smaller size."
            )

    def more_identity(self) -> dict[str, Any]:
        """Also the share of noise, which the schedule gives, and the scale of the latents."""
        scale = round(float(self.vae.config.scaling_factor), 4)
        return {**super().more_identity(), "sigma": round(self.noise_level().sigma, 5), "scale": scale}

    # Noise

    def noise_level(self) -> NoiseLevel:
        """The timestep, and the share of noise ``sqrt(1 - alpha)`` that the schedule has there."""
        tau = min(self.settings.timestep, self.alphas.shape[0] - 1)
        return NoiseLevel(tau, math.sqrt(1 - float(self.alphas[tau])))

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """``sqrt(alpha) * latents + sqrt(1 - alpha) * noise``."""
        sigma = self.noise_level().sigma
        return latents * math.sqrt(1 - sigma**2) + noise * sigma

    # VAE

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to latents ``[B, depth * z, h, w]``: equal ones for all steps of a token."""
        # One by one: of a large batch diffusers' convolutions cut the time axis, which one frame is too short for.
        latents = torch.cat([self._encoded(frame[:, :, None]) for frame in pixels.split(1)])[:, :, 0]
        return latents.repeat(1, self.depth, 1, 1)

    def video_latents(self, pixels: Tensor) -> Tensor:
        """``[1 + time_stride * k, 3, H, W]`` in [-1, 1] to latents ``[1 + k, depth * z, h, w]``."""
        latents = self._encoded(pixels.transpose(0, 1)[None])[0].transpose(0, 1)
        latents = torch.cat([latents[:1]] * (self.depth - 1) + [latents])
        tokens: Tensor = latents.unflatten(0, (-1, self.depth)).flatten(1, 2)
        return tokens

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, t, h, w]``, scaled."""
        # `invert_scale_latents` is of the image that image-to-video models are given, not of the video.
        return mean * float(self.vae.config.scaling_factor)

    # Transformer

    @property
    def output_norm(self) -> nn.Module:
        """Between the last block and this norm there is nothing, and the text's tokens are gone."""
        norm: nn.Module = self.transformer.norm_final
        return norm

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, depth * z, T, h, w]`` through all blocks that are there."""
        batch, height, width = noisy.shape[0], *noisy.shape[-2:]
        steps = noisy.transpose(1, 2).unflatten(2, (self.depth, -1)).flatten(1, 2)
        self.transformer(
            hidden_states=steps,
            encoder_hidden_states=self.prompt(PROMPT, batch),
            timestep=torch.full((batch,), self.noise_level().tau, dtype=torch.long, device=noisy.device),
            image_rotary_emb=self._rotary(steps.shape[1], height, width, noisy.device),
            return_dict=False,
        )

    def _rotary(self, steps: int, height: int, width: int, device: torch.device) -> Any:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        from diffusers import CogVideoXPipeline

        # The pipeline's own rule for sizes other than the trained one; it looks at nothing else of a pipeline.
        pipeline: Any = SimpleNamespace(transformer=self.transformer, vae_scale_factor_spatial=1)
        return CogVideoXPipeline._prepare_rotary_positional_embeddings(pipeline, height, width, steps, device)


def load_cogvideox(settings: PriorSettings) -> Prior:
    """Build a CogVideoX prior from ``settings.pretrained``, a folder in diffusers' layout or a hub id.

    Raises:
        CheckpointError: the folder is missing, half there, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoder to compute it.
    """
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    config = _transformer_config(folder)
    vae_config = read_config(folder / "vae", "AutoencoderKLCogVideoX")
    alphas = _alphas(folder)
    tap = resolved_tap(settings.tap, config["num_layers"], settings.name)
    prompt = _prompt_of(folder, settings, is_local, config)
    transformer = load_component(
        folder / "transformer",
        lambda: CogVideoXTransformer3DModel.from_config({**config, "num_layers": tap + 1}),
        wanted=until("transformer_blocks", tap),
    )
    vae = load_encoder(folder / "vae", lambda: AutoencoderKLCogVideoX.from_config(vae_config))
    settings = settings.model_copy(update={"tap": tap})
    return CogVideoXPrior(transformer, vae, prompt[PROMPT], alphas, settings, reload=load_cogvideox)


def load_prompt(settings: PriorSettings) -> dict[str, Tensor]:
    """The empty prompt's ``prompt_embeds [1, tokens, text_dim]``, without loading anything else."""
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    return _prompt_of(folder, settings, is_local, _transformer_config(folder))


def _transformer_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder / "transformer", "CogVideoXTransformer3DModel")
    file = folder / "transformer" / "config.json"
    number_of(config, "num_layers", file)
    if config.get("ofs_embed_dim") or config.get("in_channels", 16) != config.get("out_channels", 16):
        raise CheckpointError(f"{file} is of an image-to-video CogVideoX; this prior needs text-to-video weights.")
    return config


def _alphas(folder: Path) -> Tensor:
    from diffusers import CogVideoXDDIMScheduler

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    expect(config.get("_class_name"), SCHEDULERS, file)
    alphas: Tensor = CogVideoXDDIMScheduler.from_config(config).alphas_cumprod
    return alphas.double()


def _prompt_of(folder: Path, settings: PriorSettings, is_local: bool, config: Mapping[str, Any]) -> dict[str, Tensor]:
    length = int(config.get("max_text_seq_length", 226))

    def encode(pipeline: Any) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=length)
        return {PROMPT: embeds}

    tensors = pipeline_prompt(folder, settings, is_local, "CogVideoXPipeline", encode, TEXT_PATTERNS)
    return {PROMPT: prompt_tensor(tensors, PROMPT, int(config.get("text_embed_dim", 4096)), lengths={length})}


# Trained on 49 frames, which are 13 latent steps; the 1.5 on 81, which are 11 tokens of two steps each.
_FIRST = {"size": (480, 720), "window": 13, "overlap": 3}

SPECS = (
    PriorSpec(
        "cogvideox-2b",
        load_cogvideox,
        "CogVideoX text-to-video, 2B, 30 blocks",
        source="THUDM/CogVideoX-2b",
        feature_dim=1920,
        contexts=ALL_CONTEXTS,
        # Its schedule is noisier than the 5B's: this timestep has as much noise as 300 there.
        defaults={"tap": 20, "timestep": 165, **_FIRST},
        options=NoOptions,
        prompt=load_prompt,
        kind=CogVideoXPrior,
        licence="Apache 2.0",
        taps="0 to 29: blocks of the transformer",
        parameters=1.3,
    ),
    PriorSpec(
        "cogvideox-5b",
        load_cogvideox,
        "CogVideoX text-to-video, 5B, 42 blocks",
        source="THUDM/CogVideoX-5b",
        feature_dim=3072,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 28, "timestep": 300, **_FIRST},
        options=NoOptions,
        prompt=load_prompt,
        kind=CogVideoXPrior,
        licence="CogVideoX licence: research free, commercial use after registration",
        taps="0 to 41: blocks of the transformer",
        parameters=3.9,
    ),
    PriorSpec(
        "cogvideox1.5-5b",
        load_cogvideox,
        "CogVideoX 1.5 text-to-video, 5B, 42 blocks, for larger frames",
        source="THUDM/CogVideoX1.5-5B",
        feature_dim=3072,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 28, "timestep": 300, "size": (768, 1360), "window": 11, "overlap": 3},
        options=NoOptions,
        prompt=load_prompt,
        kind=CogVideoXPrior,
        licence="CogVideoX licence: research free, commercial use after registration",
        taps="0 to 41: blocks of the transformer",
        parameters=3.9,
    ),
)
