"""Mochi: the prior against the whole, unmodified models of diffusers, and what is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_of, edit
from support.goldens import error
from support.small_wan import apart, close
from support.toys.mochi import TOYS
from torch import Tensor

from vega3d_plugin.contracts.errors import CheckpointError, PromptError, SettingsError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.generators.mochi import MochiPrior

TOLERANCE = 1e-5
(TOY,) = TOYS
MASKED = {"prompt_embeds": torch.zeros(1, 256, 16), "prompt_attention_mask": torch.zeros(1, 256, dtype=torch.bool)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mochi")
    TOY.write(path)
    return path


def prior(folder: Path, **settings: Any) -> MochiPrior:
    loaded = TOY.load(folder, **settings)
    assert isinstance(loaded, MochiPrior)
    return loaded


def whole_model(folder: Path, latents: Tensor, timestep: float, prompt: dict[str, Tensor]) -> list[Tensor]:
    """What each block of the unmodified transformer gives for latents ``[1, z, T, h, w]``."""
    from diffusers import MochiTransformer3DModel

    model = MochiTransformer3DModel.from_pretrained(folder / "transformer").eval()
    kept: list[Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, out: kept.append(out[0]))
    with torch.no_grad():
        model(
            latents,
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=prompt["prompt_embeds"],
            encoder_attention_mask=prompt["prompt_attention_mask"],
        )
    return kept


def noisy(latents: Tensor, sigma: float) -> Tensor:
    """``[T, z, h, w]`` as the transformer takes it, ``[1, z, T, h, w]``, with the noise of seed 0."""
    noise = draw_noise(tuple(latents.shape[1:]), 0, range(latents.shape[0]))
    return ((1 - sigma) * latents + sigma * noise).transpose(0, 1)[None]


def vae_latents(folder: Path, clip: Tensor) -> Tensor:
    """The unmodified VAE on a clip ``[T, 3, H, W]`` of the right size: ``[T', z, h, w]``."""
    from diffusers import AutoencoderKLMochi

    vae = AutoencoderKLMochi.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        latents = vae.encode((clip * 2 - 1).transpose(0, 1)[None]).latent_dist.mode()[0].transpose(0, 1)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    # The pipeline decodes `latents * std / scaling_factor + mean`.
    return (latents - mean) * vae.config.scaling_factor / std


def clip(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tap", range(4))
def test_every_tap_is_that_blocks_output_in_the_whole_model(folder: Path, tap: int) -> None:
    video = clip(3)
    p = prior(folder, tap=tap, context="views")
    latents = torch.cat([vae_latents(folder, frame[None]) for frame in video])
    assert error(p.encode(video), latents) < TOLERANCE
    sigma = p.noise_level().sigma
    expected = whole_model(folder, noisy(latents, sigma), 1000 - 1000 * sigma, MASKED)[tap]
    assert error(p(video), expected.unflatten(1, (3, 2, 3)).movedim(-1, 2)[0]) < TOLERANCE
    assert prior(folder, tap=tap - 4).settings.tap == tap


def test_a_frame_is_a_video_of_its_own(folder: Path) -> None:
    video = clip(2)
    p = prior(folder)
    sigma = p.noise_level().sigma
    latents = torch.cat([vae_latents(folder, frame[None]) for frame in video])
    for i, features in enumerate(p(video)):
        one = noisy(latents, sigma)[:, :, i : i + 1]
        expected = whole_model(folder, one, 1000 - 1000 * sigma, MASKED)[2]
        assert error(features, expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE


def test_latent_steps_are_of_six_frames(folder: Path) -> None:
    p = prior(folder, context="video")
    assert p.time_stride == 6
    video = clip(13)
    latents = p.encode(video)
    assert latents.shape == (3, 12, 4, 6)
    assert error(latents, vae_latents(folder, video)) < TOLERANCE
    # Causal, so the first step is the first frame alone, and the second one ends with frame 6.
    assert error(latents[:1], vae_latents(folder, video[:1])) < TOLERANCE
    assert error(latents[:2], vae_latents(folder, video[:7])) < TOLERANCE
    assert p.spans(13, 3) == [(0.0, 1 / 13), (1 / 13, 7 / 13), (7 / 13, 1.0)]
    assert p(clip(8)).shape == (3, 24, 2, 3)


def test_timesteps_run_from_noise_to_data(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    # The pipeline starts from pure noise with the scheduler's first timestep.
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.25])
    assert scheduler.timesteps.tolist() == [0, 250, 750]
    for timestep, share in ((1000, 1.0), (750, 0.75), (250, 0.25), (0, 0.0)):
        level = prior(folder, timestep=timestep).noise_level()
        assert abs(level.sigma - share) < 2e-3
        assert level.tau == pytest.approx(1000 * (1 - level.sigma))
    # Nearly all noise: the picture hardly matters; nearly none: the noise hardly does.
    high, low = prior(folder, timestep=1000), prior(folder, timestep=0)
    assert apart(high(clip(1)), high(1 - clip(1))) < 0.02 < apart(low(clip(1)), low(1 - clip(1)))
    other = {"seed": 1}
    assert apart(prior(folder, timestep=0, **other)(clip(1)), low(clip(1))) < 0.02
    assert apart(prior(folder, timestep=1000, **other)(clip(1)), high(clip(1))) > 0.02


def test_no_text_means_that_every_token_is_masked(folder: Path) -> None:
    p = prior(folder)
    assert p.tensors["prompt_embeds"].shape == (1, 1, 16)
    assert not p.tensors["prompt_attention_mask"].any()
    # What the masked tokens hold is seen by nobody.
    sigma = p.noise_level().sigma
    junk = {**MASKED, "prompt_embeds": torch.randn(1, 256, 16)}
    latents = noisy(vae_latents(folder, clip(1)), sigma)
    expected = whole_model(folder, latents, 1000 - 1000 * sigma, junk)[2]
    assert error(p(clip(1))[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE


def test_an_encoded_prompt_is_another_one(folder: Path, tmp_path: Path) -> None:
    own = copy_of(folder, tmp_path)
    with pytest.raises(PromptError, match=r"empty_prompt\.safetensors"):
        prior(own, prompt="encoded")
    prompt = {
        "prompt_embeds": torch.randn(1, 5, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 0, 0, 0]]),
    }
    save_file(prompt, own / "empty_prompt.safetensors")
    p = prior(own, prompt="encoded")
    assert p.tensors["prompt_embeds"].shape == (1, 2, 16)
    sigma = p.noise_level().sigma
    latents = noisy(vae_latents(folder, clip(1)), sigma)
    expected = whole_model(folder, latents, 1000 - 1000 * sigma, prompt)[2]
    assert error(p(clip(1))[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE
    # The file beside the weights is for `encoded` alone.
    close(prior(own)(clip(1)), prior(folder)(clip(1)))
    assert apart(p(clip(1)), prior(folder)(clip(1))) > 1e-3
    assert p.fingerprint != prior(own).fingerprint == prior(folder).fingerprint
    with pytest.raises(SettingsError, match="'zeros' or 'encoded'"):
        prior(folder, prompt="empty")


@pytest.mark.parametrize("zeros", [False, True])
def test_the_encoded_prompt_comes_from_the_pipeline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: bool
) -> None:
    from transformers import T5Config, T5EncoderModel

    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    own = copy_of(folder, tmp_path)
    torch.manual_seed(1)
    encoder = T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    encoder.save_pretrained(own / "text_encoder")
    index = {
        "_class_name": "MochiPipeline",
        "force_zeros_for_empty_prompt": zeros,
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    (own / "model_index.json").write_text(json.dumps(index))
    tensors = prior(own, prompt="encoded").tensors
    if zeros:
        assert tensors.keys() == prior(folder).tensors.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in prior(folder).tensors.items())
        return
    # T5's end of sequence, then padding, which is masked.
    ids = torch.tensor([[1] + [0] * 255])
    with torch.no_grad():
        embeds = encoder(ids, attention_mask=ids.bool())[0]
    assert tensors["prompt_attention_mask"].tolist() == [[True]]
    torch.testing.assert_close(tensors["prompt_embeds"], embeds[:, :1])
    export = plugin_manager().priors.get("mochi-1").prompt
    assert export is not None
    assert torch.equal(dict(export(prior(own, prompt="encoded").settings))["prompt_embeds"], tensors["prompt_embeds"])


def test_half_precision_does_not_drown_the_pixels_waves(folder: Path) -> None:
    # Values of 8 bits, as pictures have them: bfloat16 would round them to something else before their sines.
    video = (clip(2) * 255).round() / 255
    for context, count in (("frame", 2), ("video", 2)):
        exact, rounded = prior(folder, context=context), prior(folder, context=context, dtype="bfloat16")
        assert apart(rounded.encode(video[:count]), exact.encode(video[:count])) < 0.1
        assert rounded(video).dtype == torch.bfloat16


def test_only_what_leads_to_the_tap_is_read(folder: Path, tmp_path: Path) -> None:
    cut = copy_of(folder, tmp_path)
    for tap in range(4):
        assert len(prior(folder, tap=tap).transformer.transformer_blocks) == tap + 1
        assert len(prior(folder, tap=tap).repeated_parts()) == tap + 1
    assert prior(folder).vae.decoder is None
    for part, gone in (("transformer", "transformer_blocks.3."), ("vae", "decoder.")):
        path = cut / part / "diffusion_pytorch_model.safetensors"
        tensors = {key: value.clone() for key, value in load_file(path).items() if not key.startswith(gone)}
        path.unlink()
        save_file(tensors, path)
    close(prior(cut)(clip(1)), prior(folder)(clip(1)))
    with pytest.raises(CheckpointError, match=r"missing transformer_blocks\.3\."):
        prior(cut, tap=3)


def test_the_statistics_of_the_latents_are_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path)
    edit(other / "vae" / "config.json", latents_std=[2.0] * 12)
    assert prior(other).fingerprint != prior(folder).fingerprint
    assert apart(prior(other)(clip(1)), prior(folder)(clip(1))) > 0.01


def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    broken = copy_of(folder, tmp_path)
    edit(broken / "vae" / "config.json", _class_name="AutoencoderKLWan")
    with pytest.raises(CheckpointError, match="'AutoencoderKLWan', expected AutoencoderKLMochi"):
        prior(broken)
    edit(broken / "transformer" / "config.json", num_layers=None)
    with pytest.raises(CheckpointError, match="num_layers as None"):
        prior(broken)
