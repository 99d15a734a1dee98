"""LTX-Video: what the whole model computes in a plain run, its noise, its sense of time, its prompt and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import edit, rewrite
from support.toys import t5
from support.toys.ltx_video import TEXT, TOYS, write
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, PromptError, SettingsError
from vega3d_plugin.priors.catalogue.ltx_video import SPECS
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.generators.ltx_video import LTXVideoPrior

(TOY,) = TOYS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ltx")
    TOY.write(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    path = tmp_path / "copy"
    path.mkdir()
    write(path)
    return path


def load(folder: Path, **settings: Any) -> LTXVideoPrior:
    prior = TOY.load(folder, **settings)
    assert isinstance(prior, LTXVideoPrior)
    return prior


def frames(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(count))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def plain(
    folder: Path, latents: Tensor, noise: Tensor, tap: int, timestep: int = 300, frame_rate: float = 25
) -> Tensor:
    """The block's output in a run of diffusers' whole model; latents ``[B, F, z, h, w]``, tokens ``[B, L, C]`` out."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    whole = LTXVideoTransformer3DModel.from_pretrained(folder / "transformer").eval()
    # An unshifted schedule holds every timestep, by what share of noise it stands for.
    scheduler = FlowMatchEulerDiscreteScheduler()
    noisy = scheduler.scale_noise(latents, torch.tensor([float(timestep)]).expand(len(latents)), noise)
    prompt = load_file(folder / "empty_prompt.safetensors")
    _, steps, _, height, width = latents.shape
    kept: list[Tensor] = []
    whole.transformer_blocks[tap].register_forward_hook(lambda module, args, out: kept.append(out))
    whole(
        hidden_states=LTXPipeline._pack_latents(noisy.transpose(1, 2)),
        encoder_hidden_states=prompt["prompt_embeds"].expand(len(latents), -1, -1),
        encoder_attention_mask=prompt["prompt_attention_mask"].expand(len(latents), -1),
        timestep=torch.tensor([float(timestep)]).expand(len(latents)),
        num_frames=steps,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / frame_rate, 32, 32),
    )
    return kept[0]


@torch.no_grad()
def encoded(folder: Path, video: Tensor) -> Tensor:
    """Frames ``[T, 3, H, W]`` in [0, 1] to normalised latents ``[t, z, h, w]``, by the whole VAE and the pipeline."""
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline

    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "vae").eval()
    mean = vae.encode(video.movedim(0, 1)[None] * 2 - 1).latent_dist.mode()
    scale = vae.config.scaling_factor
    return LTXPipeline._normalize_latents(mean, vae.latents_mean, vae.latents_std, scale)[0].movedim(0, 1)


def noise(count: int) -> Tensor:
    return draw_noise((8, 2, 3), 0, range(count))


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("tap", [0, 2, 3])
def test_each_frame_alone(shared: Path, tap: int) -> None:
    latents = torch.stack([encoded(shared, frame[None]) for frame in frames(3)])
    expected = plain(shared, latents, noise(3)[:, None], tap)
    close(tokens(load(shared, tap=tap)(frames(3))), expected)


@pytest.mark.parametrize("count", [2, 5])
def test_views_attend_to_each_other(shared: Path, count: int) -> None:
    latents = torch.cat([encoded(shared, frame[None]) for frame in frames(count)])
    expected = plain(shared, latents[None], noise(count)[None], 2)
    maps = load(shared, context="views")(frames(count))
    close(tokens(maps).flatten(0, 1)[None], expected)


@pytest.mark.parametrize("count", [9, 17, 25])
def test_a_video(shared: Path, count: int) -> None:
    latents = encoded(shared, frames(count))
    maps = load(shared, context="video")(frames(count))
    assert maps.shape[0] == latents.shape[0] == 1 + (count - 1) // 8
    close(tokens(maps).flatten(0, 1)[None], plain(shared, latents[None], noise(len(latents))[None], 2))


def test_other_lengths_repeat_the_last_frame(shared: Path) -> None:
    prior = load(shared, context="video")
    short = frames(11)
    assert prior(short).shape[0] == 3
    close(prior(short), prior(torch.cat([short, short[-1:].expand(6, -1, -1, -1)])))
    spans = prior.spans(11, 3)
    assert spans == [(0, 1 / 11), (1 / 11, 9 / 11), (9 / 11, 1)]


@pytest.mark.parametrize("timestep", [1, 250, 1000])
def test_a_timestep_is_a_share_of_noise(shared: Path, timestep: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    prior = load(shared, timestep=timestep)
    latents, drawn = torch.randn(2, 8, 2, 3), torch.randn(2, 8, 2, 3)
    expected = FlowMatchEulerDiscreteScheduler().scale_noise(latents, torch.tensor([float(timestep)] * 2), drawn)
    torch.testing.assert_close(prior.noised(latents, drawn), expected, rtol=1e-5, atol=1e-5)
    one = encoded(shared, frames(1))[None]
    close(tokens(prior(frames(1))), plain(shared, one, noise(1)[None], 2, timestep))


def test_the_flow_shift_does_not_matter(shared: Path) -> None:
    assert load(shared, shift=3.0).fingerprint == load(shared).fingerprint


def test_the_frame_rate_scales_time(shared: Path) -> None:
    latents = torch.cat([encoded(shared, frame[None]) for frame in frames(3)])
    slow, usual = load(shared, context="views", frame_rate=5.0), load(shared, context="views")
    close(tokens(slow(frames(3))).flatten(0, 1)[None], plain(shared, latents[None], noise(3)[None], 2, frame_rate=5))
    assert float((slow(frames(3)) - usual(frames(3))).abs().max()) > 1e-3
    assert slow.fingerprint != usual.fingerprint
    with pytest.raises(SettingsError, match="frame_rate"):
        load(shared, frame_rate=0.0)


def test_the_statistics_of_the_latents_are_read_and_in_the_fingerprint(folder: Path) -> None:
    before = load(folder)
    rewrite(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        lambda tensors: {**tensors, "latents_std": torch.full((8,), 2.0)},
    )
    after = load(folder)
    assert after.fingerprint != before.fingerprint
    assert float((after(frames(1)) - before(frames(1))).abs().max()) > 1e-3


def test_what_is_not_needed_is_not_read(folder: Path) -> None:
    prior = load(folder, tap=1)
    assert len(prior.transformer.transformer_blocks) == len(prior.repeated_parts()) == 2
    assert prior.vae.decoder is None
    expected = prior(frames(1))
    for part, prefix in (("transformer", "transformer_blocks.3."), ("vae", "decoder.")):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        kept = {key: value.clone() for key, value in load_file(path).items() if not key.startswith(prefix)}
        path.unlink()
        save_file(kept, path)
    close(load(folder, tap=1)(frames(1)), expected)
    with pytest.raises(CheckpointError, match=r"missing transformer_blocks\.3\."):
        load(folder, tap=3)


def test_a_size_between_tokens_is_refused(shared: Path) -> None:
    with pytest.raises(PriorError, match=r"divisible by 32 .*got 48x96"):
        load(shared, size=(48, 96))


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_another_architecture_and_a_missing_part(folder: Path, part: str) -> None:
    edit(folder / part / "config.json", _class_name="Other")
    with pytest.raises(CheckpointError, match=rf"{part}.*another architecture: _class_name is 'Other'"):
        load(folder)
    (folder / part / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{part} is incomplete"):
        load(folder)


def test_patches_of_several_latents_are_refused(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", patch_size=2)
    with pytest.raises(CheckpointError, match="one token per latent"):
        load(folder)


# Prompt


def test_the_prompt_and_its_mask_are_computed_by_the_checkpoints_own_text_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5EncoderModel

    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    (folder / "empty_prompt.safetensors").unlink()
    t5.write_t5(folder, "LTXPipeline")
    prior = load(folder)
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        expected = model(torch.tensor([[1] + [0] * 127]))[0]
    close(prior.tensors["prompt_embeds"], expected)
    assert prior.tensors["prompt_attention_mask"].tolist() == [[True] + [False] * 127]
    (spec,) = SPECS
    assert spec.prompt is not None
    exported = spec.prompt(vega3d.PriorSettings(name="ltx-video", pretrained=str(folder)))
    assert sorted(exported) == ["prompt_attention_mask", "prompt_embeds"]


def test_masked_tokens_do_not_matter_and_others_do(folder: Path) -> None:
    path = folder / "empty_prompt.safetensors"
    before, embeds = load(folder)(frames(1)), load_file(path)["prompt_embeds"].clone()
    hidden, seen = embeds.clone(), embeds.clone()
    hidden[:, 2:] += 1
    seen[:, :2] += torch.randn(2, 16)
    rewrite(path, lambda tensors: {**tensors, "prompt_embeds": hidden})
    close(load(folder)(frames(1)), before)
    rewrite(path, lambda tensors: {**tensors, "prompt_embeds": seen})
    assert float((load(folder)(frames(1)) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("mask", [None, torch.zeros(1, TEXT), torch.ones(1, TEXT + 1)])
def test_a_prompt_without_a_usable_mask_is_refused(folder: Path, mask: Tensor | None) -> None:
    path = folder / "empty_prompt.safetensors"
    tensors = {"prompt_embeds": torch.randn(1, TEXT, 16), "prompt_attention_mask": mask}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    with pytest.raises(
        PromptError, match=rf"prompt_attention_mask (of shape \[1, {TEXT}\], found|leaves out every token)"
    ):
        load(folder)


def test_a_mask_of_numbers_is_read_as_one(folder: Path) -> None:
    before = load(folder)(frames(1))
    path = folder / "empty_prompt.safetensors"
    rewrite(path, lambda tensors: {**tensors, "prompt_attention_mask": tensors["prompt_attention_mask"].long()})
    close(load(folder)(frames(1)), before)
