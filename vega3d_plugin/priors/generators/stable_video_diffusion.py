"""Stable Video Diffusion (image to video) as a latent world simulator (paper, comparison of generators; released
``SVDOnlineEncoder``), on diffusers' own classes.

The frames of a chunk are VAE-encoded one by one and noised; beside each lie its clean latents as condition, the CLIP
embedding of the chunk's first frame stands for the prompt, and the UNet attends across the chunk. The feature is what
enters its mid block. The released code runs a second, unconditional pass for guidance and drops it: it is left out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PriorError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.weights import DIFFUSERS, TRANSFORMERS, read_json
from ..catalogue.stable_video_diffusion import SvdOptions
from ..diffusion.flow_matching import NoiseLevel, draw_noise
from ..diffusion.unet import Stage, UNetPrior, check_channels, load_unet, stage
from ..encoders.image_vae import load_vae, vae_stride
from ..frozen.components import expect, load_component, locate_parts, read_config
from ..frozen.prior import Reload

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class StableVideoDiffusionPrior(UNetPrior):
    """Features of a Stable Video Diffusion UNet.

    Contexts: ``views``: chunks of ``window`` frames that attend to each other. ``frame``: every frame is a chunk.

    Args:
        unet: diffusers' ``UNetSpatioTemporalConditionModel``, which ends with ``until`` (:func:`~.unet.load_unet`).
        vae: diffusers' ``AutoencoderKLTemporalDecoder``; only its encoder is used.
        image_encoder: transformers' ``CLIPVisionModelWithProjection``.
        statistics: mean and standard deviation per channel that CLIP expects.
        scheduler: diffusers' ``EulerDiscreteScheduler``.
        until: the tapped stage.
        settings: resolved settings; ``size`` must be divisible by the VAE's stride of 8, for a tap in the up blocks
            by 64.
        reload: rebuilds this prior from its settings; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    family = "stable-video-diffusion"
    interpolates = False

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        image_encoder: nn.Module,
        statistics: tuple[Sequence[float], Sequence[float]],
        scheduler: Any,
        until: Stage,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        self.vae_stride = vae_stride(vae.config)
        self.statistics = statistics
        self.scheduler = scheduler
        self.options = SvdOptions.parse(settings.options)
        #: CLIP's embeddings of the frames that begin a chunk, while a clip is worked on.
        self._images: dict[int, Tensor] = {}
        super().__init__(
            {"unet": unet, "vae": vae, "image_encoder": image_encoder},
            settings,
            feature_dim=until.channels,
            # Of the latents: every halving behind them rounds up.
            stride=self.vae_stride * until.divisor,
            reload=reload,
        )

    @property
    def scale(self) -> float:
        """What the UNet's noisy latents are scaled by, and its condition is not."""
        return float(self.vae.config.scaling_factor)

    def more_identity(self) -> dict[str, Any]:
        """Also the noise level, the scale of the latents, and what CLIP expects."""
        more = {"sigma": round(self.noise_level().sigma, 6), "scaling_factor": self.scale}
        return {**super().more_identity(), **more, "clip": [list(values) for values in self.statistics]}

    def prepare(self, device: torch.device) -> None:
        """The VAE overflows in float16 where its configuration says so; then it stays in float32."""
        super().prepare(device)
        if self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()

    @property
    def pixel_dtype(self) -> torch.dtype:
        """The VAE's own, which is float32 where it would overflow."""
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def noise_level(self) -> NoiseLevel:
        """The continuous timestep ``0.25 log(sigma)`` that the UNet is given, and sigma, in units of the latents'."""
        if self.options.schedule == "released":
            index = int(torch.argmin((self.scheduler.timesteps - self.settings.timestep).abs()))
            return NoiseLevel(float(self.scheduler.timesteps[index]), float(self.scheduler.sigmas[index]))
        alphas = self.scheduler.alphas_cumprod
        alpha = float(alphas[min(self.settings.timestep, len(alphas) - 1)])
        sigma = ((1 - alpha) / alpha) ** 0.5
        return NoiseLevel(0.25 * math.log(sigma), sigma)

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """``(latents + sigma * noise) / sqrt(sigma ** 2 + 1)``: noisy, and scaled as the UNet's input."""
        sigma = self.noise_level().sigma
        latents = latents if self.options.scale_latents else latents / self.scale
        return (latents + sigma * noise) / math.sqrt(sigma**2 + 1)

    # Frames

    def extract(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Checked frames ``[T, 3, H, W]`` to features ``[T, C, h, w]``, inside a :meth:`session`."""
        count = frames.shape[0]
        firsts = range(count) if self.settings.context == "frame" else [place.start for place in self.places(count)]
        try:
            for index in firsts:
                self._images[index] = self.image_embedding(frames[index : index + 1])
            return super().extract(frames, noise)
        finally:
            self._images = {}

    def places(self, count: int) -> list[range]:
        """The chunks; without overlap one follows the other and the last may be shorter, as released."""
        window = self.settings.window
        if window is None or self.settings.overlap:
            return super().places(count)
        return [range(start, min(start + window, count)) for start in range(0, count, window)]

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``[T, 3, H, W]`` in [0, 1] to scaled latents ``[T, z, h, w]``, float32 (the mode)."""
        with self.session(frames.device):
            count, size, latents = frames.shape[0], self._frames_per_encoding(), []
            for start in range(0, count, size):
                pixels = self.pixels(frames[start : start + size]) * 2 - 1
                # Frames of negative index, so that no latent shares its noise.
                indices = range(-1 - start, -1 - start - pixels.shape[0], -1)
                drawn = draw_noise(tuple(pixels.shape[1:]), self.settings.seed, indices).to(pixels)
                pixels = pixels + self.options.augmentation * drawn
                latents.append(self.frame_latents(pixels.to(self.pixel_dtype)).float())
                self.report("VAE", start + pixels.shape[0], count)
            return torch.cat(latents)

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, z, h, w]`` (the mode)."""
        mode: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return mode * self.scale

    def image_embedding(self, frames: Tensor) -> Tensor:
        """CLIP's embeddings ``[B, 1, D]`` of frames ``[B, 3, H, W]`` in [0, 1]."""
        encoder: Any = self.models["image_encoder"]
        side = int(encoder.config.image_size)
        pixels = resize_antialiased(self.pixels(frames) * 2 - 1, (side, side)) / 2 + 0.5
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in self.statistics)
        embedding: Tensor = encoder(((pixels - mean) / std).to(self.dtype)).image_embeds
        return embedding[:, None]

    # UNet

    def transform_rows(self, noisy: Tensor, latents: Tensor, rows: Sequence[range]) -> Tensor:
        """``[B, T, z, h, w]`` to ``[B, T, C, h', w']``; each row is a chunk."""
        if not all(row.start in self._images for row in rows):
            raise PriorError(
                f"Prior {self.settings.name!r} is conditioned on frames, not on latents alone: call it on frames."
            )
        batch, level, options = noisy.shape[0], self.noise_level(), self.options
        clean = latents / self.scale
        if options.condition == "first":
            clean = clean[:, :1].expand_as(clean)
        # Told one frame per second less, as in training.
        told = torch.tensor([options.fps - 1, options.motion, options.augmentation], device=noisy.device)
        maps: Tensor = self.unet(
            torch.cat([noisy, clean], dim=2).to(self.dtype),
            torch.full((batch,), level.tau, dtype=torch.float32, device=noisy.device),
            encoder_hidden_states=torch.cat([self._images[row.start] for row in rows]).to(self.dtype),
            added_time_ids=told.float().expand(batch, -1),
        ).sample
        return maps

    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """One chunk that is the whole clip."""
        return self.transform_rows(noisy, latents, [range(noisy.shape[1])] * noisy.shape[0])


def resize_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Blur and resize ``[B, C, H, W]`` as diffusers' pipeline does before CLIP.

    A Gaussian of sigma ``(factor - 1) / 2`` pixels, cut at two sigmas and reflected at the borders, then bicubic with
    align_corners=True.
    """
    kernels = []
    for side, target in zip(images.shape[-2:], size, strict=True):
        sigma = max((side / target - 1) / 2, 0.001)
        width = int(max(4 * sigma, 3))
        width += 1 - width % 2
        x = torch.arange(width, dtype=torch.float32, device=images.device) - width // 2
        weights = torch.exp(-(x**2) / (2 * sigma**2))
        kernels.append(weights / weights.sum())
    down, across = kernels
    channels = images.shape[1]
    margins = (len(across) // 2,) * 2 + (len(down) // 2,) * 2
    padded = F.pad(images, margins, mode="reflect")
    blurred = F.conv2d(padded, across.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    blurred = F.conv2d(blurred, down.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
    return F.interpolate(blurred, size=size, mode="bicubic", align_corners=True)


def load(settings: PriorSettings) -> Prior:
    """Build the prior from ``settings.pretrained``, a folder in diffusers' layout or a hub id.

    Raises:
        CheckpointError: the folder is missing, incomplete, or holds another architecture.
        PriorError: a tap out of range, or a size that does not fit.
    """
    parts = {"unet": DIFFUSERS, "vae": DIFFUSERS, "image_encoder": TRANSFORMERS}
    more = ["scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"]
    folder, _ = locate_parts(settings, parts, more)
    config = read_config(folder / "unet", "UNetSpatioTemporalConditionModel")
    if not config.get("block_out_channels"):
        raise CheckpointError(f"{folder / 'unet' / 'config.json'} lacks block_out_channels.")
    until = stage(config, settings)
    vae = load_vae(folder / "vae", "AutoencoderKLTemporalDecoder")
    latents = int(vae.config.latent_channels)
    check_channels(config, latents, 2 * latents, folder / "unet" / "config.json")
    unet = load_unet(folder / "unet", "UNetSpatioTemporalConditionModel", config, until)
    image_encoder = load_image_encoder(folder / "image_encoder", int(unet.config.cross_attention_dim))
    return StableVideoDiffusionPrior(
        unet,
        vae,
        image_encoder,
        _statistics(folder),
        load_scheduler(folder),
        until,
        settings.model_copy(update={"tap": until.tap}),
        reload=load,
    )


def load_image_encoder(folder: Path, width: int) -> Any:
    """transformers' ``CLIPVisionModelWithProjection`` of a component's folder, whose embeddings have ``width``."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig.from_dict(read_config(folder, "clip_vision_model", key="model_type"))
    if config.projection_dim != width:
        raise CheckpointError(
            f"{folder} gives embeddings of {config.projection_dim} numbers, the UNet expects {width}. "
            "It belongs to another checkpoint."
        )
    # Older files hold the numbers 0, 1, 2, ... of the positions as well.
    return load_component(
        folder,
        lambda: CLIPVisionModelWithProjection(config),
        stem=TRANSFORMERS,
        wanted=lambda key: not key.endswith("position_ids"),
    )


def load_scheduler(folder: Path) -> Any:
    """diffusers' ``EulerDiscreteScheduler`` of the checkpoint, with all its timesteps in its list."""
    from diffusers import EulerDiscreteScheduler

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    expect(config.get("_class_name"), {"EulerDiscreteScheduler"}, file)
    known = set(inspect.signature(EulerDiscreteScheduler.__init__).parameters) - {"self"}
    scheduler = EulerDiscreteScheduler(**{key: value for key, value in config.items() if key in known})
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler


def _statistics(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    file = folder / "feature_extractor" / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    return config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
