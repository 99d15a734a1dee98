"""Cosmos-Predict: the priors against the whole, unmodified models of diffusers, and what is their own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_of, edit
from support.goldens import error
from support.small_wan import apart, close
from support.toys import Toy
from support.toys.cosmos import TOYS
from torch import Tensor

from vega3d_plugin.contracts.errors import CheckpointError, PromptError, SettingsError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.generators.cosmos import Cosmos1Prior, CosmosPrior

TOLERANCE = 1e-5
PREDICT2, TEXT2IMAGE, PREDICT1 = TOYS
FPS = {PREDICT2.id: 16, TEXT2IMAGE.id: 16, PREDICT1.id: 30}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Toy], Path]:
    @cache
    def written(name: str) -> Path:
        folder = tmp_path_factory.mktemp("cosmos")
        next(toy for toy in TOYS if toy.id == name).write(folder)
        return folder

    return lambda toy: written(toy.id)


@pytest.fixture(params=TOYS, ids=lambda toy: toy.id)
def toy(request: pytest.FixtureRequest) -> Toy:
    return request.param


def prior(toy: Toy, folder: Path, **settings: Any) -> CosmosPrior:
    loaded = toy.load(folder, **settings)
    assert isinstance(loaded, CosmosPrior)
    return loaded


def padded(embeds: Tensor) -> Tensor:
    """As the pipelines pad the prompt."""
    return torch.cat([embeds, torch.zeros(1, 512 - embeds.shape[1], embeds.shape[2])], dim=1)


def whole_model(folder: Path, latents: Tensor, timestep: float, fps: int, embeds: Tensor) -> list[Tensor]:
    """What each block of the unmodified transformer gives for latents ``[1, z, T, h, w]``, called as in pipelines."""
    from diffusers import CosmosTransformer3DModel

    model = CosmosTransformer3DModel.from_pretrained(folder / "transformer").eval()
    kept: list[Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, out: kept.append(out))
    batch, _, steps, height, width = latents.shape
    is_video_to_world = model.config.in_channels == 17
    with torch.no_grad():
        model(
            latents,
            # One timestep per step for Video2World, as no step is given.
            timestep=torch.full((batch, 1, steps, 1, 1) if is_video_to_world else (batch,), timestep),
            encoder_hidden_states=padded(embeds),
            fps=fps,
            condition_mask=torch.zeros(batch, 1, steps, height, width) if is_video_to_world else None,
            padding_mask=torch.zeros(1, 1, height * 8, width * 8),
        )
    return kept


def inputs(toy: Toy, latents: Tensor, share: float) -> tuple[Tensor, float]:
    """What the pipelines give the transformer: latents ``[1, z, T, h, w]`` with the noise of seed 0, and the timestep.

    Written with the pipelines' own sigma, from which the share of noise follows.
    """
    noise = draw_noise(tuple(latents.shape[1:]), 0, range(latents.shape[0]))
    clean, noise = (part.transpose(0, 1)[None] for part in (latents, noise))
    if toy is PREDICT1:
        from diffusers import EDMEulerScheduler

        scheduler = EDMEulerScheduler(sigma_data=0.5)
        sigma = 0.5 * share / (1 - share)
        sample = 0.5 * clean + sigma * noise
        return scheduler.precondition_inputs(sample, sigma), float(scheduler.precondition_noise(sigma))
    sigma = share / (1 - share)
    current_t = sigma / (sigma + 1)
    return (clean + sigma * noise) * (1 - current_t), current_t


def vae_latents(toy: Toy, folder: Path, clip: Tensor) -> Tensor:
    """The unmodified VAE on a clip ``[T, 3, H, W]`` of the right size: ``[T', z, h, w]`` of unit variance."""
    from diffusers import AutoencoderKLCosmos, AutoencoderKLWan

    kind = AutoencoderKLCosmos if toy is PREDICT1 else AutoencoderKLWan
    vae = kind.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        latents = vae.encode((clip * 2 - 1).transpose(0, 1)[None]).latent_dist.mode()
    # As the pipelines bring latents back before they decode them.
    mean, std = (
        torch.tensor(values).view(1, 16, -1, 1, 1)[:, :, : latents.shape[2]]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return ((latents - mean) / std)[0].transpose(0, 1)


def prompt_of(folder: Path) -> Tensor:
    return load_file(folder / "empty_prompt.safetensors")["prompt_embeds"]


def clip(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tap", range(4))
def test_every_tap_is_that_blocks_output_in_the_whole_model(toy: Toy, folders: Callable[[Toy], Path], tap: int) -> None:
    folder, video = folders(toy), clip(3)
    p = prior(toy, folder, tap=tap, context="views")
    latents = torch.cat([vae_latents(toy, folder, frame[None]) for frame in video])
    assert error(p.encode(video), latents) < TOLERANCE
    noisy, timestep = inputs(toy, latents, p.noise_level().sigma)
    assert p.noise_level().tau == pytest.approx(timestep, abs=1e-6)
    expected = whole_model(folder, noisy, timestep, FPS[toy.id], prompt_of(folder))[tap]
    assert error(p(video), expected.unflatten(1, (3, 2, 3)).movedim(-1, 2)[0]) < TOLERANCE
    assert prior(toy, folder, tap=tap - 4).settings.tap == tap


def test_a_frame_is_a_video_of_its_own(toy: Toy, folders: Callable[[Toy], Path]) -> None:
    folder, video = folders(toy), clip(2)
    p = prior(toy, folder)
    latents = torch.cat([vae_latents(toy, folder, frame[None]) for frame in video])
    noisy, timestep = inputs(toy, latents, p.noise_level().sigma)
    for i, features in enumerate(p(video)):
        expected = whole_model(folder, noisy[:, :, i : i + 1], timestep, FPS[toy.id], prompt_of(folder))[2]
        assert error(features, expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE


def test_videos_are_encoded_as_the_vae_does(toy: Toy, folders: Callable[[Toy], Path]) -> None:
    stride = 8 if toy is PREDICT1 else 4
    p = prior(toy, folders(toy), context="video")
    assert p.time_stride == stride
    video = clip(1 + 2 * stride)
    assert error(p.encode(video), vae_latents(toy, folders(toy), video)) < TOLERANCE
    assert p(video).shape == (3, 48, 2, 3)


def test_steps_beyond_the_statistics_have_the_last_ones(folders: Callable[[Toy], Path], tmp_path: Path) -> None:
    own = copy_of(folders(PREDICT1), tmp_path)
    table = torch.rand(16, 2)
    edit(own / "vae" / "config.json", latents_mean=table.flatten().tolist(), latents_std=(1 + table).flatten().tolist())
    p = prior(PREDICT1, own, context="video")
    raw = torch.rand(1, 16, 3, 1, 1)
    expected = [(raw[0, :, i, 0, 0] - table[:, min(i, 1)]) / (1 + table[:, min(i, 1)]) for i in range(3)]
    torch.testing.assert_close(p.normalised(raw)[0, :, :, 0, 0], torch.stack(expected, dim=1))
    assert p.fingerprint != prior(PREDICT1, folders(PREDICT1), context="video").fingerprint
    config = own / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_mean": None, "latents_std": None}))
    assert torch.equal(prior(PREDICT1, own).normalised(raw), raw)


@pytest.mark.parametrize("timestep", [0, 20, 300, 700, 1000])
def test_the_share_of_noise_is_that_of_the_straight_path(
    toy: Toy, folders: Callable[[Toy], Path], timestep: int
) -> None:
    p = prior(toy, folders(toy), timestep=timestep)
    share = p.noise_level().sigma
    assert abs(share - timestep / 1000) < 2e-3
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 16, 4, 6)
    noisy = p.noised(clean, noise)
    mixed = (1 - share) * clean + share * noise
    close(noisy / noisy.norm(), mixed / mixed.norm())
    if toy is PREDICT1:
        assert p.noise_level().tau == pytest.approx(math.log(0.5 * share / (1 - share)) / 4)
        assert abs(float(noisy.std()) - 1) < 0.05
    else:
        assert p.noise_level().tau == share
        close(noisy, mixed)


def test_the_deviation_of_latents_comes_from_the_scheduler(folders: Callable[[Toy], Path], tmp_path: Path) -> None:
    own = copy_of(folders(PREDICT1), tmp_path)
    file = own / "scheduler" / "scheduler_config.json"
    edit(file, sigma_data=1.0)
    p = prior(PREDICT1, own)
    assert isinstance(p, Cosmos1Prior)
    assert p.sigma_data == 1.0
    assert apart(p(clip(1)), prior(PREDICT1, folders(PREDICT1))(clip(1))) > 1e-4
    assert p.fingerprint != prior(PREDICT1, folders(PREDICT1)).fingerprint
    edit(file, sigma_data=0)
    with pytest.raises(CheckpointError, match="sigma_data as 0"):
        prior(PREDICT1, own)
    file.unlink()
    assert prior(PREDICT1, own).fingerprint == prior(PREDICT1, folders(PREDICT1)).fingerprint


def test_frames_per_second_space_the_steps(toy: Toy, folders: Callable[[Toy], Path]) -> None:
    folder, video = folders(toy), clip(2)
    slow = prior(toy, folder, context="views", fps=2.0)
    latents = torch.cat([vae_latents(toy, folder, frame[None]) for frame in video])
    noisy, timestep = inputs(toy, latents, slow.noise_level().sigma)
    expected = whole_model(folder, noisy, timestep, 2, prompt_of(folder))[2]
    assert error(slow(video), expected.unflatten(1, (2, 2, 3)).movedim(-1, 2)[0]) < TOLERANCE
    usual = prior(toy, folder, context="views")
    assert apart(slow(video), usual(video)) > 1e-4
    assert slow.fingerprint != usual.fingerprint
    # One frame has no time between steps.
    close(prior(toy, folder, fps=2.0)(video), prior(toy, folder)(video))
    with pytest.raises(SettingsError, match="fps"):
        prior(toy, folder, fps=0.0)


def test_the_prompt_conditions_and_its_padding_does_not_pile_up(
    toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path
) -> None:
    own = copy_of(folders(toy), tmp_path)
    save_file({"prompt_embeds": padded(prompt_of(folders(toy)))}, own / "empty_prompt.safetensors")
    p = prior(toy, own)
    assert p.tensors["prompt_embeds"].shape == (1, 1, 16)
    assert p.fingerprint == prior(toy, folders(toy)).fingerprint
    save_file({"prompt_embeds": torch.randn(1, 3, 16)}, own / "empty_prompt.safetensors")
    p = prior(toy, own)
    noisy, timestep = inputs(toy, vae_latents(toy, own, clip(1)), p.noise_level().sigma)
    expected = whole_model(own, noisy, timestep, FPS[toy.id], prompt_of(own))[2]
    assert error(p(clip(1))[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE
    assert apart(p(clip(1)), prior(toy, folders(toy))(clip(1))) > 1e-4
    save_file({"prompt_embeds": torch.randn(1, 513, 16)}, own / "empty_prompt.safetensors")
    with pytest.raises(PromptError, match="513 tokens, expected at most 512"):
        prior(toy, own)


@pytest.mark.parametrize("toy", [PREDICT2, PREDICT1], ids=lambda toy: toy.id)
def test_the_prompt_comes_from_the_pipeline(
    toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5Config, T5EncoderModel

    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    own = copy_of(folders(toy), tmp_path)
    (own / "empty_prompt.safetensors").unlink()
    with pytest.raises(PromptError, match=toy.prior):
        prior(toy, own)
    torch.manual_seed(1)
    encoder = T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    encoder.save_pretrained(own / "text_encoder")
    index = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (own / "model_index.json").write_text(json.dumps(index))
    p = prior(toy, own)
    # T5's end of sequence, then padding, which the pipeline masks and sets to zero.
    ids = torch.tensor([[1] + [0] * 511])
    with torch.no_grad():
        embeds = encoder(ids, attention_mask=ids.bool()).last_hidden_state[:, :1]
    torch.testing.assert_close(p.tensors["prompt_embeds"], embeds)
    export = plugin_manager().priors.get(toy.prior).prompt
    assert export is not None
    assert torch.equal(dict(export(p.settings))["prompt_embeds"], p.tensors["prompt_embeds"])


def test_torchvision_is_not_needed(toy: Toy, folders: Callable[[Toy], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.transformers import transformer_cosmos

    monkeypatch.delattr(transformer_cosmos, "transforms")
    assert prior(toy, folders(toy))(clip(1)).shape == (1, 48, 2, 3)


def test_only_what_leads_to_the_tap_is_read(toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path) -> None:
    folder = folders(toy)
    cut = copy_of(folder, tmp_path)
    for tap in range(4):
        assert len(prior(toy, folder, tap=tap).transformer.transformer_blocks) == tap + 1
        assert len(prior(toy, folder, tap=tap).repeated_parts()) == tap + 1
    assert prior(toy, folder).vae.decoder is None
    for part, gone in (("transformer", "transformer_blocks.3."), ("vae", "decoder.")):
        path = cut / part / "diffusion_pytorch_model.safetensors"
        tensors = {key: value.clone() for key, value in load_file(path).items() if not key.startswith(gone)}
        path.unlink()
        save_file(tensors, path)
    close(prior(toy, cut)(clip(1)), prior(toy, folder)(clip(1)))
    with pytest.raises(CheckpointError, match=r"missing transformer_blocks\.3\."):
        prior(toy, cut, tap=3)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "of the other generation": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKLMochi"),
        "_class_name is 'AutoencoderKLMochi', expected AutoencoderKL(Wan|Cosmos)",
    ),
    "more channels": (lambda f: edit(f / "transformer" / "config.json", in_channels=19), "has 19 input channels"),
    "Predict2.5": (
        lambda f: edit(f / "transformer" / "config.json", use_crossattn_projection=True),
        r"as Predict2\.5 and Transfer",
    ),
    "no number of blocks": (lambda f: edit(f / "transformer" / "config.json", num_layers=None), "num_layers as None"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_used_is_named(toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    broken = copy_of(folders(toy), tmp_path)
    change(broken)
    with pytest.raises(CheckpointError, match=message):
        prior(toy, broken)
