"""CogVideoX: what the whole model computes in a plain run, its noise, its two-step tokens, its prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import edit
from support.toys import t5
from support.toys.base import Toy
from support.toys.cogvideox import TEXT, TOYS, write
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, FramesError, PriorError, PromptError
from vega3d_plugin.priors.catalogue.cogvideox import SPECS
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.generators.cogvideox import CogVideoXPrior

TOY = {toy.prior: toy for toy in TOYS}
NAMES = sorted(TOY)
FIRST, SECOND, LARGE = "cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, toy in TOY.items():
        found[name] = tmp_path_factory.mktemp("cogvideox") / name
        found[name].mkdir()
        toy.write(found[name])
    return found


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to damage."""
    path = tmp_path / "copy"
    path.mkdir()
    write(getattr(request, "param", FIRST), path)
    return path


def load(toy: Toy, folder: Path, **settings: Any) -> CogVideoXPrior:
    prior = toy.load(folder, **settings)
    assert isinstance(prior, CogVideoXPrior)
    return prior


def frames(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def plain(folder: Path, steps: Tensor, noise: Tensor, timestep: int, tap: int) -> Tensor:
    """The block's video tokens in a run of diffusers' whole model, ``[B, F, z, h, w]`` in, ``[B, L, C]`` out."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    whole = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    scheduler = CogVideoXDDIMScheduler.from_config(CogVideoXDDIMScheduler.load_config(folder / "scheduler"))
    pipeline = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=whole, scheduler=scheduler)
    rotary = None
    if whole.config.use_rotary_positional_embeddings:
        size = (steps.shape[-2] * 8, steps.shape[-1] * 8)
        rotary = pipeline._prepare_rotary_positional_embeddings(*size, steps.shape[1], torch.device("cpu"))
    prompt = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"]
    kept: list[Tensor] = []
    whole.transformer_blocks[tap].register_forward_hook(lambda module, args, out: kept.append(out[0]))
    whole(
        hidden_states=scheduler.add_noise(steps, noise, torch.tensor([timestep])),
        encoder_hidden_states=prompt.expand(len(steps), -1, -1),
        timestep=torch.tensor([timestep]).expand(len(steps)),
        image_rotary_emb=rotary,
    )
    return kept[0]


@torch.no_grad()
def encoded(folder: Path, video: Tensor) -> Tensor:
    """Frames ``[T, 3, H, W]`` in [0, 1] to scaled latents ``[t, z, h, w]``, by diffusers' whole VAE."""
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae").eval()
    return vae.encode(video.movedim(0, 1)[None] * 2 - 1).latent_dist.mode()[0].movedim(0, 1) * vae.config.scaling_factor


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def tokens(maps: Tensor) -> Tensor:
    """``[T, C, h, w]`` to ``[T, L, C]``."""
    return maps.flatten(2).transpose(1, 2)


def noise_of(prior: CogVideoXPrior, count: int) -> Tensor:
    """The prior's own draw as noise of single steps, ``[count * depth, z, h, w]``."""
    drawn = draw_noise((4 * prior.depth, 4, 6), prior.settings.seed, range(count))
    return drawn.unflatten(1, (prior.depth, 4)).flatten(0, 1)


@pytest.mark.parametrize("tap", [0, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_frame_alone(folders: dict[str, Path], name: str, tap: int) -> None:
    prior = load(TOY[name], folders[name], tap=tap)
    latents = torch.stack([encoded(folders[name], frame[None]) for frame in frames(3)])
    steps = latents.repeat_interleave(prior.depth, dim=1)
    noise = noise_of(prior, 3).unflatten(0, (3, prior.depth))
    expected = plain(folders[name], steps, noise, prior.settings.timestep, tap)
    close(tokens(prior(frames(3))), expected)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_views_attend_to_each_other(folders: dict[str, Path], name: str, count: int) -> None:
    prior = load(TOY[name], folders[name], context="views")
    latents = torch.cat([encoded(folders[name], frame[None]) for frame in frames(count)])
    steps = latents.repeat_interleave(prior.depth, dim=0)[None]
    expected = plain(folders[name], steps, noise_of(prior, count)[None], prior.settings.timestep, 2)
    close(tokens(prior(frames(count))).flatten(0, 1)[None], expected)


@pytest.mark.parametrize("count", [5, 9, 13, 17, 25])
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_video(folders: dict[str, Path], name: str, count: int) -> None:
    prior = load(TOY[name], folders[name], context="video")
    steps = encoded(folders[name], frames(count))[None]
    expected = plain(folders[name], steps, noise_of(prior, steps.shape[1])[None], prior.settings.timestep, 2)
    maps = prior(frames(count))
    assert maps.shape[0] == 1 + (count - 1) // 4
    close(tokens(maps).flatten(0, 1)[None], expected)


@pytest.mark.parametrize("count", [9, 17, 25])
def test_a_video_of_two_steps_a_token(folders: dict[str, Path], count: int) -> None:
    folder, prior = folders[LARGE], load(TOY[LARGE], folders[LARGE], context="video")
    steps = encoded(folder, frames(count))
    assert steps.shape[0] % 2 == 1
    # One step too few for pairs: the first is there twice.
    steps = torch.cat([steps[:1], steps])[None]
    expected = plain(folder, steps, noise_of(prior, steps.shape[1] // 2)[None], prior.settings.timestep, 2)
    maps = prior(frames(count))
    assert maps.shape[0] == 1 + (count - 1) // 8
    close(tokens(maps).flatten(0, 1)[None], expected)


@pytest.mark.parametrize(("name", "count", "steps"), [(FIRST, 2, 2), (FIRST, 7, 3), (LARGE, 2, 2), (LARGE, 11, 3)])
def test_other_lengths_repeat_the_last_frame(folders: dict[str, Path], name: str, count: int, steps: int) -> None:
    prior = load(TOY[name], folders[name], context="video")
    short = frames(count)
    whole = torch.cat([short, short[-1:].expand(1 + prior.time_stride * (steps - 1) - count, -1, -1, -1)])
    assert prior(short).shape[0] == steps
    close(prior(short), prior(whole))
    spans = prior.spans(count, steps)
    assert spans is not None
    assert spans[0] == (0, 1 / count)
    assert spans[-1][1] == 1


def test_the_steps_of_a_pair_have_noise_of_their_own(folders: dict[str, Path]) -> None:
    noise = noise_of(load(TOY[LARGE], folders[LARGE]), 2)
    assert len({round(float(step.sum()), 4) for step in noise}) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timestep", [0, 40, 300, 999])
def test_noise_is_the_schedulers(folders: dict[str, Path], name: str, timestep: int) -> None:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    config = json.loads((folders[name] / "scheduler" / "scheduler_config.json").read_text())
    scheduler = {"CogVideoXDDIMScheduler": CogVideoXDDIMScheduler, "CogVideoXDPMScheduler": CogVideoXDPMScheduler}[
        config["_class_name"]
    ].from_pretrained(folders[name] / "scheduler")
    prior = load(TOY[name], folders[name], timestep=timestep)
    latents, noise = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6)
    expected = scheduler.add_noise(latents, noise, torch.tensor([timestep]))
    torch.testing.assert_close(prior.noised(latents, noise), expected, rtol=1e-5, atol=1e-5)
    assert prior.noise_level().tau == timestep


def test_the_last_timestep_is_the_schedules_last(folders: dict[str, Path]) -> None:
    assert load(TOY[FIRST], folders[FIRST], timestep=1000).noise_level() == (999, 1.0)


def test_the_default_timesteps_are_equally_noisy(folders: dict[str, Path]) -> None:
    levels = [
        load(TOY[spec.name], folders[spec.name], timestep=spec.defaults["timestep"]).noise_level().sigma
        for spec in SPECS
    ]
    assert max(levels) - min(levels) < 0.005
    assert 0.6 < min(levels) < 0.7


def test_the_schedule_is_part_of_the_fingerprint_and_the_flow_shift_is_not(folder: Path) -> None:
    before = load(TOY[FIRST], folder).fingerprint
    assert load(TOY[FIRST], folder, shift=3.0).fingerprint == before
    edit(folder / "scheduler" / "scheduler_config.json", snr_shift_scale=1.0)
    assert load(TOY[FIRST], folder).fingerprint != before


def test_the_scale_of_the_latents_is_part_of_the_fingerprint(folder: Path) -> None:
    before = load(TOY[FIRST], folder).fingerprint
    edit(folder / "vae" / "config.json", scaling_factor=1.15)
    assert load(TOY[FIRST], folder).fingerprint != before


def test_what_is_not_needed_is_not_kept(folders: dict[str, Path]) -> None:
    prior = load(TOY[FIRST], folders[FIRST], tap=1)
    assert len(prior.transformer.transformer_blocks) == len(prior.repeated_parts()) == 2
    assert prior.vae.decoder is None


def test_later_blocks_and_the_decoder_are_not_even_read(folder: Path) -> None:
    expected = load(TOY[FIRST], folder)(frames(1))
    for part, prefix in (("transformer", "transformer_blocks.3."), ("vae", "decoder.")):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        kept = {key: value.clone() for key, value in load_file(path).items() if not key.startswith(prefix)}
        path.unlink()
        save_file(kept, path)
    close(load(TOY[FIRST], folder)(frames(1)), expected)
    with pytest.raises(CheckpointError, match=r"missing transformer_blocks\.3\."):
        load(TOY[FIRST], folder, tap=3)


def test_the_size_of_the_second_model_is_free(folders: dict[str, Path]) -> None:
    for name in (FIRST, SECOND):
        assert load(TOY[name], folders[name], size=(64, 160))(frames(1)).shape[-2:] == (4, 10)


def test_a_size_beyond_the_positions_is_refused(folders: dict[str, Path]) -> None:
    assert load(TOY[LARGE], folders[LARGE], size=(48, 80))(frames(1)).shape[-2:] == (3, 5)
    with pytest.raises(PriorError, match="has positions for 48x80 pixels at most, got 64x80"):
        load(TOY[LARGE], folders[LARGE], size=(64, 80))


def test_a_video_needs_frames(folders: dict[str, Path]) -> None:
    with pytest.raises(FramesError, match="needs a video"):
        load(TOY[FIRST], folders[FIRST], context="video")(frames(1))


def test_many_large_frames_do_not_meet_the_convolutions_split(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers cuts the time axis of large batches, which fails on single frames; so the VAE never gets a batch."""
    prior = load(TOY[FIRST], folders[FIRST], chunk_frames=4)
    sizes = []
    encode = prior.vae.encode
    monkeypatch.setattr(prior.vae, "encode", lambda pixels: sizes.append(pixels.shape[0]) or encode(pixels))
    prior(frames(4))
    assert sizes == [1, 1, 1, 1]


# Folders


@pytest.mark.parametrize("folder", [SECOND], indirect=True)
def test_image_to_video_weights_are_refused(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", in_channels=8)
    with pytest.raises(CheckpointError, match="image-to-video CogVideoX"):
        load(TOY[SECOND], folder)


@pytest.mark.parametrize(
    ("part", "file"), [("transformer", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")]
)
def test_another_architecture_and_a_missing_part(folder: Path, part: str, file: str) -> None:
    edit(folder / part / file, _class_name="Other")
    with pytest.raises(CheckpointError, match=rf"{part}.*another architecture: _class_name is 'Other'"):
        load(TOY[FIRST], folder)
    (folder / part / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{part} is incomplete: {file} is missing"):
        load(TOY[FIRST], folder)


# Prompt


def test_the_prompt_is_computed_by_the_checkpoints_own_text_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5EncoderModel

    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    (folder / "empty_prompt.safetensors").unlink()
    t5.write_t5(folder, "CogVideoXPipeline")
    prompt = load(TOY[FIRST], folder).tensors["prompt_embeds"]
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    # The pipeline gives the encoder no mask: the padding counts.
    with torch.no_grad():
        expected = model(torch.tensor([[1] + [0] * (TEXT - 1)]))[0]
    close(prompt, expected)
    spec = next(spec for spec in SPECS if spec.name == FIRST)
    assert spec.prompt is not None
    exported = spec.prompt(vega3d.PriorSettings(name=FIRST, pretrained=str(folder)))
    assert torch.equal(exported["prompt_embeds"], prompt)


@pytest.mark.parametrize("shape", [(1, TEXT + 1, 16), (1, TEXT, 8), (2, TEXT, 16)])
def test_a_prompt_of_another_shape_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    save_file({"prompt_embeds": torch.randn(shape)}, folder / "empty_prompt.safetensors")
    with pytest.raises(PromptError, match=rf"expected floating \[1, {TEXT}, 16\]"):
        load(TOY[FIRST], folder)


def test_the_prompt_matters(folder: Path) -> None:
    prior = load(TOY[FIRST], folder)
    save_file({"prompt_embeds": torch.randn(1, TEXT, 16)}, folder / "empty_prompt.safetensors")
    other = load(TOY[FIRST], folder)
    assert other.fingerprint != prior.fingerprint
    assert float((other(frames(1)) - prior(frames(1))).abs().max()) > 1e-3
