"""HunyuanVideo: the prior against the whole, unmodified models of diffusers, and what is its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_of, edit
from support.goldens import error
from support.small_wan import apart, close
from support.toys.hunyuan_video import TOYS
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PromptError, SettingsError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise, schedule
from vega3d_plugin.priors.generators.hunyuan_video import HunyuanVideoPrior

TOLERANCE = 1e-5
(TOY,) = TOYS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hunyuan")
    TOY.write(path)
    return path


def prior(folder: Path, **settings: Any) -> HunyuanVideoPrior:
    loaded = TOY.load(folder, **settings)
    assert isinstance(loaded, HunyuanVideoPrior)
    return loaded


def prompt_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "empty_prompt.safetensors")


def whole_model(
    folder: Path, latents: Tensor, timestep: float, guidance: float, prompt: dict[str, Tensor]
) -> list[Tensor]:
    """What each block of the unmodified transformer gives for the video tokens of latents ``[1, z, T, h, w]``."""
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer").eval()
    kept: list[Tensor] = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.register_forward_hook(lambda module, args, out: kept.append(out[0]))
    with torch.no_grad():
        model(
            latents,
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=prompt["prompt_embeds"],
            encoder_attention_mask=prompt["prompt_attention_mask"],
            pooled_projections=prompt["pooled_prompt_embeds"],
            guidance=torch.tensor([guidance]),
        )
    return kept


def noisy(latents: Tensor, sigma: float) -> Tensor:
    """``[T, z, h, w]`` as the transformer takes it, ``[1, z, T, h, w]``, with the noise of seed 0."""
    noise = draw_noise(tuple(latents.shape[1:]), 0, range(latents.shape[0]))
    return ((1 - sigma) * latents + sigma * noise).transpose(0, 1)[None]


def vae_latents(folder: Path, clip: Tensor) -> Tensor:
    """The unmodified VAE on a clip ``[T, 3, H, W]`` of the right size: ``[T', z, h, w]``."""
    from diffusers import AutoencoderKLHunyuanVideo

    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        mean = vae.encode((clip * 2 - 1).transpose(0, 1)[None]).latent_dist.mode()
    return (mean * vae.config.scaling_factor)[0].transpose(0, 1)


def clip(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tap", range(5))
def test_every_tap_is_that_blocks_output_in_the_whole_model(folder: Path, tap: int) -> None:
    video = clip(3)
    p = prior(folder, tap=tap, context="views")
    latents = torch.cat([vae_latents(folder, frame[None]) for frame in video])
    assert error(p.encode(video), latents) < TOLERANCE
    sigma = p.noise_level().sigma
    expected = whole_model(folder, noisy(latents, sigma), 1000 * sigma, 6000.0, prompt_of(folder))[tap]
    maps = expected.unflatten(1, (3, 2, 3)).movedim(-1, 2)[0]
    assert error(p(video), maps) < TOLERANCE
    assert prior(folder, tap=tap - 5).settings.tap == tap


def test_a_frame_is_a_video_of_its_own(folder: Path) -> None:
    video = clip(2)
    p = prior(folder)
    sigma = p.noise_level().sigma
    for i, features in enumerate(p(video)):
        latents = torch.cat([vae_latents(folder, frame[None]) for frame in video])
        one = noisy(latents, sigma)[:, :, i : i + 1]
        expected = whole_model(folder, one, 1000 * sigma, 6000.0, prompt_of(folder))[3]
        assert error(features, expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE


@pytest.mark.parametrize("count", [5, 21])
def test_videos_are_encoded_as_the_vae_does(folder: Path, count: int) -> None:
    # 21 frames are more than the VAE encodes at once; it then blends overlapping spans.
    video = clip(count)
    latents = prior(folder, context="video").encode(video)
    assert latents.shape == (1 + (count - 1) // 4, 4, 4, 6)
    assert error(latents, vae_latents(folder, video)) < TOLERANCE


def test_the_schedule_is_that_of_the_pipelines_scheduler(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    assert prior(folder).settings.shift == 7.0
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    sigmas, _ = schedule(7.0)
    torch.testing.assert_close(scheduler.sigmas[:1000], sigmas, atol=1e-3, rtol=0)
    torch.testing.assert_close(scheduler.timesteps, scheduler.sigmas[:1000] * 1000)
    assert abs(prior(folder).noise_level().sigma - 0.3) < 0.002


def test_guidance_is_an_input(folder: Path) -> None:
    video = clip(1)
    p = prior(folder, guidance=1.5)
    sigma = p.noise_level().sigma
    latents = noisy(vae_latents(folder, video), sigma)
    expected = whole_model(folder, latents, 1000 * sigma, 1500.0, prompt_of(folder))[3]
    assert error(p(video)[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE
    assert apart(p(video), prior(folder)(video)) > 1e-4
    assert p.fingerprint != prior(folder).fingerprint
    with pytest.raises(SettingsError, match="guidance"):
        prior(folder, guidance=-1.0)


def test_padding_of_the_prompt_changes_nothing(folder: Path, tmp_path: Path) -> None:
    padded = copy_of(folder, tmp_path)
    prompt = prompt_of(folder)
    prompt["prompt_embeds"] = torch.cat([prompt["prompt_embeds"], torch.randn(1, 6, 16)], dim=1)
    prompt["prompt_attention_mask"] = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]])
    save_file(prompt, padded / "empty_prompt.safetensors")
    p = prior(padded)
    assert p.tensors["prompt_embeds"].shape == (1, 2, 16)
    assert p.fingerprint == prior(folder).fingerprint
    # The whole model is given the padding and the mask, as in the pipeline.
    video = clip(1)
    sigma = p.noise_level().sigma
    expected = whole_model(folder, noisy(vae_latents(folder, video), sigma), 1000 * sigma, 6000.0, prompt)[3]
    assert error(p(video)[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE


@pytest.mark.parametrize("name", ["prompt_embeds", "pooled_prompt_embeds"])
def test_the_prompt_conditions(folder: Path, tmp_path: Path, name: str) -> None:
    other = copy_of(folder, tmp_path)
    prompt = prompt_of(folder)
    prompt[name] = prompt[name] + 1
    save_file(prompt, other / "empty_prompt.safetensors")
    assert apart(prior(other)(clip(1)), prior(folder)(clip(1))) > 1e-4
    assert prior(other).fingerprint != prior(folder).fingerprint


def test_only_what_leads_to_the_tap_is_read(folder: Path, tmp_path: Path) -> None:
    cut = copy_of(folder, tmp_path)
    for tap, dual, single in ((0, 1, 0), (1, 2, 0), (2, 2, 1), (4, 2, 3)):
        model = prior(folder, tap=tap).transformer
        assert (len(model.transformer_blocks), len(model.single_transformer_blocks)) == (dual, single)
        assert len(prior(folder, tap=tap).repeated_parts()) == tap + 1
    assert prior(folder).vae.decoder is None
    for part, gone in (("transformer", "single_transformer_blocks.2."), ("vae", "decoder.")):
        path = cut / part / "diffusion_pytorch_model.safetensors"
        tensors = {key: value.clone() for key, value in load_file(path).items() if not key.startswith(gone)}
        path.unlink()
        save_file(tensors, path)
    close(prior(cut, tap=3)(clip(1)), prior(folder, tap=3)(clip(1)))
    with pytest.raises(CheckpointError, match=r"missing single_transformer_blocks\.2\."):
        prior(cut, tap=4)


def test_the_scale_of_the_latents_is_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path)
    edit(other / "vae" / "config.json", scaling_factor=1.0)
    assert prior(other).fingerprint != prior(folder).fingerprint


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "token replace": (
        lambda f: edit(f / "transformer" / "config.json", image_condition_type="token_replace"),
        CheckpointError,
        r"image-to-video HunyuanVideo \(image_condition_type 'token_replace'",
    ),
    "image channels": (
        lambda f: edit(f / "transformer" / "config.json", in_channels=9),
        CheckpointError,
        "9 channels in, 4 out",
    ),
    "another vae": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKLWan"),
        CheckpointError,
        "_class_name is 'AutoencoderKLWan', expected AutoencoderKLHunyuanVideo",
    ),
    "no number of blocks": (
        lambda f: edit(f / "transformer" / "config.json", num_single_layers=None),
        CheckpointError,
        "num_single_layers as None",
    ),
    "a prompt of another model": (
        lambda f: save_file({"context": torch.zeros(1, 16)}, f / "empty_prompt.safetensors"),
        PromptError,
        r"holds context, but no prompt_embeds \[1, tokens, 16\]",
    ),
    "a prompt of another width": (
        lambda f: save_file(
            {**prompt_of(f), "pooled_prompt_embeds": torch.zeros(1, 9)}, f / "empty_prompt.safetensors"
        ),
        PromptError,
        r"pooled_prompt_embeds is .*9\], expected floating \[1, 1, 8\]",
    ),
    "no mask": (
        lambda f: save_file({k: v for k, v in prompt_of(f).items() if "mask" not in k}, f / "empty_prompt.safetensors"),
        PromptError,
        r"needs a mask prompt_attention_mask of shape \[1, 2\], found none",
    ),
    "an empty mask": (
        lambda f: save_file(
            {**prompt_of(f), "prompt_attention_mask": torch.zeros(1, 2)}, f / "empty_prompt.safetensors"
        ),
        PromptError,
        "leaves out every token",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    change, kind, message = DAMAGE[damage]
    broken = copy_of(folder, tmp_path)
    change(broken)
    with pytest.raises(kind, match=message):
        prior(broken)


def write_text_encoders(folder: Path) -> None:
    """Tiny Llama and CLIP with tokenizers of whole words, as the pipeline expects them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    torch.manual_seed(1)
    words = {"<unk>": 0, "<pad>": 1, "video": 2, ".": 3, "user": 4}
    for name, length in (("tokenizer", 512), ("tokenizer_2", 77)):
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=length
        ).save_pretrained(folder / name)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 8}
    LlamaModel(LlamaConfig(**tiny, num_hidden_layers=4, num_key_value_heads=2)).save_pretrained(folder / "text_encoder")
    CLIPTextModel(
        CLIPTextConfig(**{**tiny, "hidden_size": 8}, num_hidden_layers=1, eos_token_id=1, pad_token_id=1)
    ).save_pretrained(folder / "text_encoder_2")
    index = {
        "_class_name": "HunyuanVideoPipeline",
        "text_encoder": ["transformers", "LlamaModel"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def test_the_prompt_comes_from_the_pipeline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import HunyuanVideoPipeline
    from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    own = copy_of(folder, tmp_path)
    (own / "empty_prompt.safetensors").unlink()
    with pytest.raises(PromptError, match="hunyuan-video"):
        prior(own)
    write_text_encoders(own)
    p = prior(own)
    pipe: Any = HunyuanVideoPipeline(
        text_encoder=LlamaModel.from_pretrained(own / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(own / "tokenizer"),
        text_encoder_2=CLIPTextModel.from_pretrained(own / "text_encoder_2"),
        tokenizer_2=AutoTokenizer.from_pretrained(own / "tokenizer_2"),
        transformer=None,
        vae=None,
        scheduler=None,
    )
    with torch.no_grad():
        embeds, pooled, mask = pipe.encode_prompt("")
    assert embeds.shape == (1, 256, 16)
    tokens = int(mask.sum())
    assert 1 <= tokens < 256
    torch.testing.assert_close(p.tensors["prompt_embeds"], embeds[:, :tokens])
    torch.testing.assert_close(p.tensors["pooled_prompt_embeds"], pooled)
    # The same features as with all that the pipeline gives.
    sigma = p.noise_level().sigma
    prompt = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "pooled_prompt_embeds": pooled}
    expected = whole_model(folder, noisy(vae_latents(folder, clip(1)), sigma), 1000 * sigma, 6000.0, prompt)[3]
    assert error(p(clip(1))[0], expected.unflatten(1, (2, 3)).movedim(-1, 1)[0]) < TOLERANCE
    # And as `vega3d prior export-prompt` gives it, a file beside the weights.
    export = plugin_manager().priors.get("hunyuan-video").prompt
    assert export is not None
    settings = vega3d.load_prior(p.settings).settings
    assert settings is not None
    exported = dict(export(settings))
    assert all(torch.equal(exported[name], p.tensors[name]) for name in p.tensors)
    other = copy_of(folder, tmp_path / "other")
    save_file(exported, other / "empty_prompt.safetensors")
    assert prior(other).fingerprint == p.fingerprint
