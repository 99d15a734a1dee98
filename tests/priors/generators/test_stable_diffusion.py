"""Stable Diffusion: its taps, its noise, its prompt, and what is read of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_of, edit, rewrite
from support.small_wan import apart, close, frames
from support.toys.stable_diffusion import PROMPT_LENGTH, PROMPT_WIDTH, WIDTHS, write
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, PromptError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.frozen import components as checkpoint
from vega3d_plugin.priors.generators.stable_diffusion import StableDiffusionPrior
from vega3d_plugin.priors.load import resolve
from vega3d_plugin.storage.weights import DIFFUSERS, weight_files

SIZE = (64, 96)
TAPS = 2 * len(WIDTHS) + 1
STAGES = ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd")
    write(path)
    return path


def load(folder: Path, **settings: Any) -> StableDiffusionPrior:
    prior = vega3d.load_prior("sd2.1", pretrained=folder, **{"size": SIZE, **settings})
    assert isinstance(prior, StableDiffusionPrior)
    return prior


def reference(folder: Path, clip: Tensor, timestep: int, seed: int = 0) -> dict[str, Tensor]:
    """What every stage of the whole, unmodified UNet gives, frame by frame."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    prompt = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = (1 - betas).cumprod(0)[timestep]
    outputs: dict[str, list[Tensor]] = {"mid_input": []}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    for name in STAGES:
        unet.get_submodule(name).register_forward_hook(keep(name))
    unet.mid_block.register_forward_pre_hook(lambda module, args: outputs["mid_input"].append(args[0]))
    with torch.no_grad():
        for index, frame in enumerate(clip):
            latents = 0.18215 * vae.encode(frame[None] * 2 - 1).latent_dist.mode()
            noise = draw_noise(tuple(latents.shape[1:]), seed, range(index, index + 1))
            noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
            unet(noisy, timestep, encoder_hidden_states=prompt)
    return {name: torch.cat(maps) for name, maps in outputs.items()}


def test_every_tap_is_that_stage_of_the_whole_model(folder: Path) -> None:
    clip = frames(2, *SIZE)
    expected = reference(folder, clip, 250)
    for tap, name in enumerate(STAGES):
        prior = load(folder, tap=tap)
        features = prior(clip)
        assert prior.feature_dim == features.shape[1]
        close(features, expected[name])


def test_the_default_is_what_enters_the_mid_block_at_250(folder: Path) -> None:
    clip = frames(2, *SIZE)
    prior = load(folder)
    assert prior.settings.timestep == 250
    assert prior.settings.tap == len(WIDTHS) - 1
    close(prior(clip), reference(folder, clip, 250)["mid_input"])
    assert prior.fingerprint == load(folder, tap=len(WIDTHS) - 1).fingerprint == load(folder, tap=-5).fingerprint


def test_the_defaults_are_the_released_ones() -> None:
    settings = resolve(vega3d.PriorSettings(name="sd2.1"))
    assert (settings.size, settings.resize, settings.timestep) == ((896, 896), "crop", 250)
    assert settings.options == {"tiling": False}
    released = resolve(vega3d.PriorSettings(name="sd2.1", preset="released"))
    assert (released.timestep, released.options) == (1, {"tiling": True})


def test_a_tap_out_of_range(folder: Path) -> None:
    assert load(folder, tap=-TAPS).settings.tap == 0
    for tap in (TAPS, -TAPS - 1):
        with pytest.raises(PriorError, match=rf"\[-{TAPS}, {TAPS - 1}\], got {tap}"):
            load(folder, tap=tap)


@pytest.mark.parametrize("tap", [0, 2, 3, 4])
def test_what_is_behind_the_tap_is_not_read(folder: Path, tmp_path: Path, tap: int) -> None:
    copied, clip = copy_of(folder, tmp_path), frames(1)
    later = tuple(f"{name}." for name in [*STAGES[tap + 1 :], "conv_norm_out", "conv_out"])
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    rewrite(weights, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(later)})
    rewrite(
        copied / "vae" / "diffusion_pytorch_model.safetensors",
        lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(("decoder.", "post_quant_conv."))},
    )
    prior = load(copied, tap=tap)
    names = [name for name, _ in prior.unet.named_parameters()]
    assert not any(name.startswith(later) for name in names)
    close(prior(clip), load(folder, tap=tap)(clip))
    assert prior.fingerprint == load(folder, tap=tap).fingerprint


def test_sizes(folder: Path) -> None:
    assert load(folder, size=(72, 104))(frames(1)).shape[2:] == (3, 4)
    with pytest.raises(PriorError, match=r"divisible by 8 .*got 60x96"):
        load(folder, size=(60, 96))
    with pytest.raises(PriorError, match=r"divisible by 32 .*got 72x96"):
        load(folder, size=(72, 96), tap=4)


# Noise


@pytest.mark.parametrize(("timestep", "tau"), [(0, 1), (1, 1), (250, 250), (999, 999), (1000, 999)])
def test_timesteps(folder: Path, timestep: int, tau: int) -> None:
    prior = load(folder, timestep=timestep)
    level = prior.noise_level()
    assert level.tau == tau
    assert abs(level.sigma**2 + prior.alpha - 1) < 1e-6
    clip = frames(1, *SIZE)
    close(prior(clip), reference(folder, clip, tau)["mid_input"])


def test_the_timestep_is_part_of_the_fingerprint_and_the_shift_is_not(folder: Path) -> None:
    assert load(folder, timestep=300).fingerprint != load(folder).fingerprint
    assert load(folder, shift=1.0).fingerprint == load(folder).fingerprint
    assert torch.equal(load(folder, shift=1.0)(frames(1)), load(folder)(frames(1)))


def test_the_schedule_is_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    edit(copied / "scheduler" / "scheduler_config.json", beta_end=0.02, _class_name="DDIMScheduler")
    assert load(copied).alpha < load(folder).alpha - 0.01
    assert load(copied).fingerprint != load(folder).fingerprint
    assert apart(load(copied)(frames(1)), load(folder)(frames(1))) > 1e-3


def test_the_scale_of_the_latents_is_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    edit(copied / "vae" / "config.json", scaling_factor=0.3643)
    torch.testing.assert_close(load(copied).encode(frames(1)), 2 * load(folder).encode(frames(1)))
    assert load(copied).fingerprint != load(folder).fingerprint


def test_tiling_changes_larger_frames_only(folder: Path) -> None:
    plain, tiled = (load(folder, size=(96, 64), tiling=tiling) for tiling in (False, True))
    assert apart(tiled(frames(1)), plain(frames(1))) > 1e-3
    assert tiled.fingerprint != plain.fingerprint
    plain, tiled = (load(folder, size=(64, 64), tiling=tiling) for tiling in (False, True))
    assert torch.equal(tiled(frames(1)), plain(frames(1)))


# The prompt


def with_text_encoder(folder: Path) -> Tensor:
    """Add a tokenizer, a tiny CLIP text encoder and the index; return what it makes of the empty text."""
    from transformers import CLIPTextConfig, CLIPTextModel

    (folder / "tokenizer").mkdir()
    vocabulary = {"!": 0, '"': 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT_LENGTH, "pad_token": "!", **special}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "!"}))
    torch.manual_seed(3)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4,
            hidden_size=PROMPT_WIDTH,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    ).eval()
    encoder.save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    # Padding is seen like any token: the pipeline masks nothing.
    ids = torch.tensor([[2, 3] + [0] * (PROMPT_LENGTH - 2)])
    with torch.no_grad():
        return encoder(ids).last_hidden_state


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint without a prompt."""
    copied = copy_of(folder, tmp_path)
    (copied / "empty_prompt.safetensors").unlink()
    return copied


def test_the_prompt_is_computed_once_from_the_text_encoder(bare: Path) -> None:
    expected = with_text_encoder(bare)
    torch.testing.assert_close(load(bare).tensors["prompt_embeds"], expected)
    shutil.rmtree(bare / "text_encoder")
    torch.testing.assert_close(load(bare).tensors["prompt_embeds"], expected)


def test_the_prompt_can_be_exported(bare: Path) -> None:
    expected = with_text_encoder(bare)
    spec = plugin_manager().priors.get("sd2.1")
    assert spec.prompt is not None
    tensors = dict(spec.prompt(resolve(vega3d.PriorSettings(name="sd2.1", pretrained=str(bare)))))
    assert list(tensors) == ["prompt_embeds"]
    torch.testing.assert_close(tensors["prompt_embeds"], expected)


def test_no_prompt_and_no_text_encoder(bare: Path) -> None:
    with pytest.raises(PromptError, match=r"empty_prompt\.safetensors"):
        load(bare)


@pytest.mark.parametrize("form", ["tensor", "flat", "prompt_embeds", "empty_prompt_embeds", "embeds"])
def test_the_released_export_is_read(bare: Path, folder: Path, form: str) -> None:
    prompt = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"]
    content: Any = prompt if form == "tensor" else prompt[0] if form == "flat" else {form: prompt, "prompt": ""}
    torch.save(content, bare / "empty_prompt_embeds.pt")
    assert load(bare).fingerprint == load(folder).fingerprint
    close(load(bare)(frames(1)), load(folder)(frames(1)))


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_released_export_that_cannot_be_used(bare: Path) -> None:
    file = bare / "empty_prompt_embeds.pt"
    for content, message in (
        ({"other": torch.zeros(1)}, "holds no embedding"),
        ([1], "holds no embedding"),
        (torch.zeros(1, 7, PROMPT_WIDTH, dtype=torch.long), "holds no embedding"),
        (torch.zeros(1, 7, PROMPT_WIDTH + 1), rf"\[1, 7, {PROMPT_WIDTH + 1}\], expected floating .*{PROMPT_WIDTH}\]"),
        (Malicious(bare / "trace"), "cannot be read as an empty prompt"),
    ):
        torch.save(content, file)
        with pytest.raises(PromptError, match=message):
            load(bare)
    assert not (bare / "trace").exists()


def test_the_prompt_matters_and_is_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    save_file({"prompt_embeds": torch.randn(1, 7, PROMPT_WIDTH)}, copied / "empty_prompt.safetensors")
    assert load(copied).fingerprint != load(folder).fingerprint
    assert apart(load(copied)(frames(1)), load(folder)(frames(1))) > 1e-4


# Checkpoints


def test_attention_under_its_old_names(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = dict(tensors)
        for key in tensors:
            for new, name in old.items():
                if new in key:
                    renamed[key.replace(new, name)] = renamed.pop(key)
        assert len(set(tensors) - set(renamed)) >= 8
        return renamed

    rewrite(copied / "vae" / "diffusion_pytorch_model.safetensors", rename)
    close(load(copied)(frames(1)), load(folder)(frames(1)))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "XL": (lambda f: edit(f / "unet" / "config.json", addition_embed_type="text_time"), "text_time.*Diffusion XL"),
    "inpainting": (
        lambda f: edit(f / "unet" / "config.json", in_channels=9),
        "takes 9 channels, this prior gives it 4",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler is incomplete: scheduler_config\.json"),
    "a flow scheduler": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        "another architecture: _class_name is 'FlowMatchEulerDiscreteScheduler'",
    ),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "has no unet/"),
    "half a config": (
        lambda f: edit(f / "unet" / "config.json", cross_attention_dim=None),
        "lacks cross_attention_dim",
    ),
    "missing tensor": (
        lambda f: rewrite(
            f / "unet" / "diffusion_pytorch_model.safetensors",
            lambda tensors: {k: v for k, v in tensors.items() if k != "down_blocks.2.resnets.0.conv1.bias"},
        ),
        r"does not fit UNet2DConditionModel(?s:.*)missing down_blocks\.2\.resnets\.0\.conv1\.bias",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_checkpoints_that_cannot_be_used(folder: Path, tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    copied = copy_of(folder, tmp_path)
    change(copied)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_of_several_precisions_the_published_one_is_read(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    whole = copied / "unet" / f"{DIFFUSERS}.safetensors"
    half, old = (whole.with_name(f"{DIFFUSERS}.{variant}.safetensors") for variant in ("fp16", "non_ema"))
    shutil.copy(whole, half)
    rewrite(half, lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    shutil.copy(whole, old)
    rewrite(old, lambda tensors: {key: tensor + 1 for key, tensor in tensors.items()})
    assert weight_files(whole.parent) == [whole]
    close(load(copied)(frames(1)), load(folder)(frames(1)))
    whole.unlink()
    assert weight_files(whole.parent) == [half]
    assert 0 < apart(load(copied)(frames(1)), load(folder)(frames(1))) < 0.01
    half.unlink()
    assert weight_files(whole.parent) == [old]


def test_shards_of_several_precisions(tmp_path: Path) -> None:
    def shards(variant: str, index: str) -> list[Path]:
        files = [tmp_path / f"{DIFFUSERS}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for i, file in enumerate(files):
            save_file({str(i): torch.zeros(1)}, file)
        names = {str(i): file.name for i, file in enumerate(files)}
        (tmp_path / index).write_text(json.dumps({"weight_map": names}))
        return files

    half = shards(".fp16", f"{DIFFUSERS}.safetensors.index.fp16.json")
    assert weight_files(tmp_path) == half
    full = shards("", f"{DIFFUSERS}.safetensors.index.json")
    assert weight_files(tmp_path) == full
    (tmp_path / f"{DIFFUSERS}.safetensors.index.json").unlink()
    for file in full:
        file.unlink()
    half[1].unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: .*index\.fp16\.json names .*fp16-00002-of-00002"):
        weight_files(tmp_path)


class Hub:
    """A repository that hands out only what is asked for."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache, self.asked = repository, cache, []

    def __call__(self, repo_id: str, patterns: list[str], *_: Any, **__: Any) -> Path:
        from fnmatch import fnmatch

        self.asked.append(patterns)
        for file in self.repository.rglob("*.*"):
            name = file.relative_to(self.repository).as_posix()
            if any(fnmatch(name, pattern) for pattern in patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name)
        return self.cache

    def files(self) -> set[str]:
        return {file.relative_to(self.cache).as_posix() for file in self.cache.rglob("*.safetensors")}


def test_only_what_is_needed_is_downloaded(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_text_encoder(bare)
    for part in ("unet", "vae"):
        weights = bare / part / f"{DIFFUSERS}.safetensors"
        shutil.copy(weights, weights.with_name(f"{DIFFUSERS}.fp16.safetensors"))
        shutil.copy(weights, weights.with_name(f"{DIFFUSERS}.non_ema.safetensors"))
    (bare / "safety_checker").mkdir()
    save_file({"a": torch.zeros(1)}, bare / "safety_checker" / "model.safetensors")
    hub = Hub(bare, tmp_path / "cache")
    monkeypatch.setattr(checkpoint, "fetch", hub)
    prior = load("owner/name")  # type: ignore[arg-type]
    weights = {f"{part}/{DIFFUSERS}.safetensors" for part in ("unet", "vae")}
    assert hub.files() == weights | {"text_encoder/model.safetensors"}
    assert not any("text_encoder" in pattern for pattern in hub.asked[0])
    assert prior.fingerprint == load(bare).fingerprint


def test_a_repository_in_half_precision_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copy_of(folder, tmp_path)
    for part in ("unet", "vae"):
        weights = copied / part / f"{DIFFUSERS}.safetensors"
        weights.rename(weights.with_name(f"{DIFFUSERS}.fp16.safetensors"))
    hub = Hub(copied, tmp_path / "cache")
    monkeypatch.setattr(checkpoint, "fetch", hub)
    assert load("owner/name").fingerprint == load(folder).fingerprint  # type: ignore[arg-type]
    assert len(hub.asked) == 2
    assert not any("text_encoder" in pattern for patterns in hub.asked for pattern in patterns)
