"""The Wan prior: what it looks at, from which folders it is read, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import goldens
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vega3d
from vega3d_plugin.errors import CheckpointError, FramesError, PriorError, PromptError, SettingsError
from vega3d_plugin.priors.flow_matching import draw_noise
from vega3d_plugin.priors.tiny_wan import RandomWeightsWarning
from vega3d_plugin.priors.wan import WanPrior

# Small enough for a CPU, and no square, so that height and width cannot be swapped unseen.
SIZE = (32, 48)
MAP = (2, 3)


def fresh(**settings: Any) -> WanPrior:
    prior = vega3d.load_prior("tiny-wan", **{"size": SIZE, **settings})
    assert isinstance(prior, WanPrior)
    return prior


@cache
def tiny(**settings: Any) -> WanPrior:
    """One for all tests that only look."""
    return fresh(**settings)


def wan(folder: Path, **settings: Any) -> WanPrior:
    prior = vega3d.load_prior("wan2.1-t2v-1.3b", pretrained=folder, **{"size": SIZE, "tap": 2, **settings})
    assert isinstance(prior, WanPrior)
    return prior


def frames(count: int = 3, height: int = 40, width: int = 50) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def close(a: Tensor, b: Tensor) -> None:
    """Equal up to the order of sums, which changes with batch size and with where weights lie in memory."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# What it looks at


def test_features_of_single_frames() -> None:
    features = tiny()(frames())
    assert features.shape == (3, 96, *MAP)
    assert features.dtype == torch.float32
    assert bool(features.isfinite().all())
    assert not features.requires_grad


@pytest.mark.parametrize("context", ["frame", "views", "video"])
def test_one_clip_has_one_feature_map(context: str) -> None:
    prior = tiny(context=context)
    first = prior(frames())
    torch.randn(10)
    assert torch.equal(prior(frames()), first)
    assert torch.equal(fresh(context=context)(frames()), first)


@pytest.mark.parametrize("context", ["frame", "views"])
def test_chunks_change_memory_not_features(context: str) -> None:
    expected = tiny(context=context, chunk_frames=5)(frames(5))
    for chunk in (1, 2):
        close(fresh(context=context, chunk_frames=chunk)(frames(5)), expected)


def test_single_frames_do_not_see_each_other() -> None:
    prior, clip = tiny(), frames()
    features = prior(clip)
    other = clip.clone()
    other[1] = 1 - other[1]
    changed = prior(other)
    close(changed[[0, 2]], features[[0, 2]])
    assert apart(changed[1], features[1]) > 0.05
    close(prior(clip[:1]), features[:1])


def test_views_see_each_other() -> None:
    prior, clip = tiny(context="views"), frames()
    features = prior(clip)
    assert features.shape == (3, 96, *MAP)
    other = clip.clone()
    other[1] = 1 - other[1]
    assert apart(prior(other)[0], features[0]) > 1e-3
    # And one alone sees what a single frame does.
    close(prior(clip[:1]), tiny()(clip[:1]))


def test_views_keep_their_own_latent_frame() -> None:
    prior, clip = tiny(context="views"), frames()
    prior(clip)
    latents = prior.encode(clip)
    close(latents[1:2], prior.encode(clip[1:2]))


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (2, 2), (5, 2), (6, 3), (8, 3), (9, 3)])
def test_a_video_has_a_step_for_four_frames(count: int, steps: int) -> None:
    prior, clip = tiny(context="video"), frames(count)
    features = prior(clip)
    assert features.shape == (steps, 96, *MAP)
    # No frame is dropped: the last one is in the last step, also where the clip is not of 4k + 1 frames.
    other = clip.clone()
    other[-1] = 1 - other[-1]
    assert apart(prior(other)[-1], features[-1]) > 1e-3


def test_a_video_is_seen_in_causal_steps() -> None:
    prior, clip = tiny(context="video"), frames(9)
    prior(clip)
    latents = prior.encode(clip)
    other = clip.clone()
    other[5:] = 1 - other[5:]
    changed = prior.encode(other)
    torch.testing.assert_close(changed[:2], latents[:2])
    assert apart(changed[2], latents[2]) > 1e-2


def test_a_video_of_an_odd_length_is_padded_with_its_last_frame() -> None:
    prior, clip = tiny(context="video"), frames(7)
    padded = torch.cat([clip, clip[-1:], clip[-1:]])
    assert torch.equal(prior(clip), prior(padded))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1)]),
        (9, [(0, 1 / 9), (1 / 9, 5 / 9), (5 / 9, 1)]),
        (7, [(0, 1 / 7), (1 / 7, 5 / 7), (5 / 7, 1)]),
        (2, [(0, 1 / 2), (1 / 2, 1)]),
    ],
)
def test_spans_of_a_video(count: int, expected: list[tuple[float, float]]) -> None:
    prior = tiny(context="video")
    spans = prior.spans(count, prior(frames(count)).shape[0])
    assert spans is not None
    for span, wanted in zip(spans, expected, strict=True):
        assert span == pytest.approx(wanted)
    assert tiny().spans(count, count) is None
    assert tiny(context="views").spans(count, count) is None


def test_noise_has_its_own_draw_for_each_frame_and_seed() -> None:
    noise = draw_noise((16, 4, 6), 0, range(4))
    assert noise.shape == (4, 16, 4, 6)
    flat = noise.flatten(1)
    assert float(torch.corrcoef(flat).fill_diagonal_(0).abs().max()) < 0.2
    assert abs(float(noise.std()) - 1) < 0.1
    # A frame's draw depends on its index alone, and not on torch's own generator.
    torch.manual_seed(123)
    assert torch.equal(draw_noise((16, 4, 6), 0, range(2, 4)), noise[2:])
    others = torch.cat([draw_noise((16, 4, 6), seed, range(4)) for seed in (1, 2, -1, 1_000_003)]).flatten(1)
    assert float(torch.corrcoef(torch.cat([flat, others])).fill_diagonal_(0).abs().max()) < 0.3


def test_equal_frames_have_unequal_noise() -> None:
    clip = frames(1).expand(3, -1, -1, -1)
    features = tiny()(clip)
    assert apart(features[0], features[1]) > 1e-3
    assert apart(tiny(seed=1)(clip), features) > 1e-3


def test_given_noise_takes_the_place_of_the_drawn_one() -> None:
    prior, clip = tiny(), frames(2)
    drawn = draw_noise((16, SIZE[0] // 8, SIZE[1] // 8), 0, range(2))
    assert torch.equal(prior(clip, noise=drawn), prior(clip))
    assert apart(prior(clip, noise=-drawn), prior(clip)) > 1e-3
    with pytest.raises(PriorError, match=r"\[2, 16, 4, 6\], got \[1, 16, 4, 6\]"):
        prior(clip, noise=drawn[:1])


@pytest.mark.parametrize("change", [{"timestep": 700}, {"shift": 1.0}, {"tap": 0}, {"seed": 3}, {"resize": "stretch"}])
def test_every_setting_changes_the_features(change: dict[str, Any]) -> None:
    clip = frames(1)
    assert apart(tiny(**change)(clip), tiny()(clip)) > 1e-3


@pytest.mark.parametrize("shape", [(32, 48), (64, 96), (17, 100), (300, 20), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_frames_of_any_size_are_taken(shape: tuple[int, int], resize: str) -> None:
    assert tiny(resize=resize)(frames(1, *shape)).shape == (1, 96, *MAP)


def test_stretching_keeps_what_cropping_cuts() -> None:
    clip = frames(1, 32, 200)
    other = clip.clone()
    other[..., :20] = 1 - other[..., :20]
    assert torch.equal(tiny()(clip), tiny()(other))
    assert apart(tiny(resize="stretch")(clip), tiny(resize="stretch")(other)) > 1e-3


# Blocks


@pytest.mark.parametrize(("tap", "index"), [(0, 0), (3, 3), (-1, 3), (-4, 0), (None, 2)])
def test_the_tap_is_an_index_or_counts_from_the_end(tap: int | None, index: int) -> None:
    prior = tiny(tap=tap)
    assert prior.settings.tap == index
    assert f"tap={index}" in repr(prior)
    assert torch.equal(prior(frames(1)), tiny(tap=index)(frames(1)))


@pytest.mark.parametrize("tap", [4, -5, 30])
def test_a_tap_outside_is_refused(tap: int) -> None:
    with pytest.raises(PriorError, match=rf"has 4 blocks, so the tap is in \[-4, 3\], got {tap}\..*try tap=3"):
        tiny(tap=tap)


def test_what_is_not_needed_is_not_kept(diffusers_folder: Path) -> None:
    counts = {}
    for name, load in {"tiny": tiny, "folder": lambda **s: wan(diffusers_folder, **s)}.items():
        for tap in (0, 1, 3):
            prior = load(tap=tap)
            assert len(prior.transformer.blocks) == tap + 1
            assert prior.vae.decoder is None
            assert not [key for key, _ in prior.vae.named_parameters() if key.startswith("decoder")]
            counts[name, tap] = sum(p.numel() for p in prior.transformer.parameters())
    assert counts["tiny", 0] < counts["tiny", 1] < counts["tiny", 3]
    block = counts["tiny", 1] - counts["tiny", 0]
    assert counts["tiny", 3] - counts["tiny", 1] == 2 * block


def test_later_blocks_are_not_even_read(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    rewrite(path, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("blocks.3.")})
    close(wan(folder, tap=2)(frames(1)), wan(diffusers_folder, tap=2)(frames(1)))
    with pytest.raises(CheckpointError, match=r"blocks\.3\."):
        wan(folder, tap=3)


# Folders


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of the real classes, saved by diffusers itself."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    folder = tmp_path_factory.mktemp("wan") / "diffusers"
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 4}
    WanTransformer3DModel(**shape, text_dim=16, freq_dim=32).save_pretrained(folder / "transformer")
    AutoencoderKLWan(base_dim=8, z_dim=16).save_pretrained(folder / "vae")
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")
    return folder


@pytest.fixture(scope="module")
def original_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference weights, laid out as the original release."""
    folder = tmp_path_factory.mktemp("wan") / "original"
    folder.mkdir()
    transformer, vae = goldens.load("wan_t2v"), goldens.load("wan_vae")
    save_file(transformer.weights, folder / "diffusion_pytorch_model.safetensors")
    torch.save(vae.weights, folder / "Wan2.1_VAE.pth")
    config = {"_class_name": "WanModel", "model_type": "t2v", **transformer.info["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"context": transformer.inputs["context"].reshape(1, -1)}, folder / "empty_prompt.safetensors")
    return folder


def copy_of(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where / "copy"))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Another file of the same name: the old one may still be mapped into memory."""
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    path.unlink()
    save_file(change(tensors), path)


def edit(path: Path, **values: Any) -> None:
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_both_layouts_of_one_checkpoint_give_the_same(original_folder: Path, tmp_path: Path) -> None:
    prior = wan(original_folder)
    assert prior(frames(2)).shape == (2, prior.feature_dim, *MAP)
    # Written again as diffusers does, with a decoder, which is read past.
    prior.transformer.save_pretrained(tmp_path / "transformer")
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_config(prior.vae.config)
    vae.load_state_dict(prior.vae.state_dict(), strict=False)
    vae.save_pretrained(tmp_path / "vae")
    shutil.copy(original_folder / "empty_prompt.safetensors", tmp_path)
    twin = wan(tmp_path)
    close(twin(frames(2)), prior(frames(2)))
    assert twin.fingerprint == prior.fingerprint


def test_a_folder_gives_the_features_of_diffusers_own_models(diffusers_folder: Path) -> None:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    prior = wan(diffusers_folder, tap=3)
    whole = WanTransformer3DModel.from_pretrained(diffusers_folder / "transformer")
    vae = AutoencoderKLWan.from_pretrained(diffusers_folder / "vae")
    other = WanPrior(whole, vae, prior.context, prior.settings)
    close(prior(frames(2)), other(frames(2)))


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_shards_with_an_index(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(f"{layout}_folder")
    folder = copy_of(source, tmp_path)
    part = folder / "transformer" if layout == "diffusers" else folder
    shards = split(part / "diffusion_pytorch_model.safetensors")
    close(wan(folder)(frames(1)), wan(source)(frames(1)))
    assert wan(folder).fingerprint == wan(source).fingerprint
    (part / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"half there: .*index\.json names {shards[1]}, missing"):
        wan(folder)


def split(path: Path) -> list[str]:
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    path.unlink()
    names = [f"{path.stem}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    keys = sorted(tensors)
    for i, name in enumerate(names):
        save_file({key: tensors[key] for key in keys[i::3]}, path.with_name(name))
    index = {"metadata": {}, "weight_map": {key: names[i % 3] for i, key in enumerate(keys)}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    return names


def test_a_missing_folder_is_named_with_near_misses(diffusers_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/difusers does not exist\. Did you mean 'diffusers'"):
        wan(diffusers_folder.with_name("difusers"))
    with pytest.raises(CheckpointError, match="/no/such/folder does not exist"):
        wan(Path("/no/such/folder"))


def test_a_file_is_no_folder(diffusers_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"empty_prompt\.safetensors is a file"):
        wan(diffusers_folder / "empty_prompt.safetensors")


def test_a_hub_id_that_cannot_be_fetched_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'nobody/nothing' is no folder here and could not be fetched"):
        wan(Path("nobody/nothing"))


DIFFUSERS_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: [shutil.rmtree(f), f.mkdir()], r"is no Wan checkpoint: expected .*Found: nothing"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), r"is no Wan checkpoint.*Found: empty_prompt.*vae/"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), r"vae is half there: config\.json is missing\. Found: nothing"),
    "no transformer config": (
        lambda f: (f / "transformer" / "config.json").unlink(),
        r"transformer is half there: config\.json is missing\. Found: diffusion_pytorch_model\.safetensors",
    ),
    "no vae config": (lambda f: (f / "vae" / "config.json").unlink(), r"vae is half there: config\.json is missing"),
    "no weights": (
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
        r"transformer has no diffusion_pytorch_model\*\.safetensors\. Found: config\.json",
    ),
    "no vae weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        r"vae has no diffusion_pytorch_model",
    ),
    "broken config": (lambda f: (f / "vae" / "config.json").write_text("{"), r"vae.config\.json is no valid JSON"),
    "binary config": (lambda f: (f / "vae" / "config.json").write_bytes(b"\xff"), r"vae.config\.json is no valid JSON"),
    "listed config": (lambda f: (f / "vae" / "config.json").write_text("[]"), r"holds a list, expected an object"),
    "no number of blocks": (
        lambda f: edit(f / "transformer" / "config.json", num_layers=None),
        r"transformer.config\.json lacks num_layers",
    ),
    "another transformer": (
        lambda f: edit(f / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        r"another architecture: _class_name is 'FluxTransformer2DModel', expected WanTransformer3DModel",
    ),
    "another vae": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKL"),
        r"another architecture: _class_name is 'AutoencoderKL', expected AutoencoderKLWan",
    ),
    "image to video": (lambda f: edit(f / "transformer" / "config.json", image_dim=1280), "image-to-video"),
    "image channels": (lambda f: edit(f / "transformer" / "config.json", in_channels=36), "image-to-video"),
    "cut weights": (
        lambda f: cut(f / "transformer" / "diffusion_pytorch_model.safetensors"),
        r"diffusion_pytorch_model\.safetensors is damaged or incomplete .*Fetch it again",
    ),
    "wrong shape": (
        lambda f: rewrite(
            f / "vae" / "diffusion_pytorch_model.safetensors",
            lambda tensors: {**tensors, "encoder.conv_in.bias": torch.zeros(5)},
        ),
        r"does not fit AutoencoderKLWan(?s:.*)size mismatch for encoder\.conv_in\.bias",
    ),
    "missing tensor": (
        lambda f: rewrite(
            f / "transformer" / "diffusion_pytorch_model.safetensors",
            lambda tensors: {k: v for k, v in tensors.items() if k != "patch_embedding.bias"},
        ),
        r"does not fit WanTransformer3DModel(?s:.*)Missing key.*patch_embedding\.bias",
    ),
}


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-100])


@pytest.mark.parametrize("damage", DIFFUSERS_DAMAGE)
def test_a_folder_in_diffusers_layout_that_is_not_whole(diffusers_folder: Path, tmp_path: Path, damage: str) -> None:
    change, message = DIFFUSERS_DAMAGE[damage]
    folder = copy_of(diffusers_folder, tmp_path)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        wan(folder)


class Malicious:
    """What a pickle from a stranger may hold."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


ORIGINAL_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vae": (
        lambda f: (f / "Wan2.1_VAE.pth").unlink(),
        r"has no VAE: expected Wan2\.1_VAE\.pth .*Found: config\.json, diffusion_pytorch_model\.safetensors",
    ),
    "no weights": (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "has no diffusion_pytorch_model"),
    "image to video": (
        lambda f: edit(f / "config.json", model_type="i2v"),
        r"another architecture: model_type is 'i2v', expected t2v",
    ),
    "another model": (
        lambda f: edit(f / "config.json", _class_name="VaceWanModel"),
        r"another architecture: _class_name is 'VaceWanModel', expected WanModel",
    ),
    "half a config": (
        lambda f: edit(f / "config.json", dim=None, num_heads=None),
        "config.json .*lacks dim, num_heads",
    ),
    "a list for a vae": (lambda f: torch.save([1], f / "Wan2.1_VAE.pth"), "holds a list, expected a dict of tensors"),
    "another vae": (lambda f: torch.save({"a": torch.zeros(1)}, f / "Wan2.1_VAE.pth"), "is no Wan VAE: it lacks"),
    "numbers for a vae": (
        lambda f: torch.save({"encoder.conv1.weight": 1, "conv2.weight": 2}, f / "Wan2.1_VAE.pth"),
        "is no Wan VAE: it lacks",
    ),
    "no pickle": (lambda f: (f / "Wan2.1_VAE.pth").write_bytes(b"none"), "cannot be read as plain weights"),
    "a malicious vae": (
        lambda f: torch.save({"encoder.conv1.weight": Malicious(f / "trace")}, f / "Wan2.1_VAE.pth"),
        r"Wan2\.1_VAE\.pth cannot be read as plain weights",
    ),
    "wrong shape": (
        lambda f: rewrite(
            f / "diffusion_pytorch_model.safetensors",
            lambda tensors: {**tensors, "patch_embedding.bias": torch.zeros(5)},
        ),
        r"does not fit WanTransformer3DModel(?s:.*)size mismatch for patch_embedding\.bias",
    ),
}


@pytest.mark.parametrize("damage", ORIGINAL_DAMAGE)
def test_a_folder_in_the_original_layout_that_is_not_whole(original_folder: Path, tmp_path: Path, damage: str) -> None:
    change, message = ORIGINAL_DAMAGE[damage]
    folder = copy_of(original_folder, tmp_path)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        wan(folder)
    assert not (folder / "trace").exists()


def test_the_malicious_file_would_run_where_pickles_are_trusted(tmp_path: Path) -> None:
    torch.save(Malicious(tmp_path / "trace"), tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_no_prompt_and_no_text_encoder(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    (folder / "empty_prompt.safetensors").unlink()
    with pytest.raises(PromptError, match=r"empty_prompt\.safetensors"):
        wan(folder)


def test_a_prompt_of_another_size_is_refused(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    save_file({"context": torch.randn(1, 17)}, folder / "empty_prompt.safetensors")
    with pytest.raises(PromptError, match=r"\[1, 17\], expected \[tokens, 16\]"):
        wan(folder)


# Settings and frames


@pytest.mark.parametrize(
    ("size", "nearest"), [((480, 830), "480x832"), ((33, 48), "32x48"), ((40, 48), "48x48"), ((5, 48), "16x48")]
)
def test_a_size_that_does_not_fit_names_the_nearest(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(PriorError, match=rf"divisible by 16.*got {size[0]}x{size[1]}\. The nearest is {nearest}\."):
        tiny(size=size)


def test_wrong_settings_are_refused_before_anything_is_built() -> None:
    with pytest.raises(SettingsError, match=r"timestep.*1001"):
        tiny(timestep=1001)
    with pytest.raises(vega3d.errors.UnknownNameError, match="Did you mean 'tiny-wan'"):
        vega3d.load_prior("tinywan")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (frames().permute(0, 2, 3, 1), r"\[3, 40, 50, 3\]\. It looks channels-last: use frames\.permute"),
        (frames()[0], r"got \[3, 40, 50\]"),
        (frames()[:0], r"T >= 1, got \[0, 3, 40, 50\]"),
        (frames()[:, :1], r"got \[3, 1, 40, 50\]"),
        (frames()[None], r"got \[1, 3, 3, 40, 50\]"),
        ((frames() * 255).to(torch.uint8), r"torch\.uint8\. Divide uint8 frames by 255"),
        (frames().long(), r"torch\.int64\. Convert them to float32"),
        (frames() * 2 - 1, r"in \[0, 1\], found \[-1\.000, 1\.000\]\. Un-normalise"),
        (frames() * 255, r"found \[0\.0\d\d, 25\d\.\d\d\d\]"),
        (frames().where(frames() > 0.01, torch.nan), "NaN or infinity"),
        (frames().where(frames() > 0.01, torch.inf), "NaN or infinity"),
        ([frames()], "got list"),
    ],
)
def test_frames_that_are_none_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(FramesError, match=rf"'tiny-wan'.*{message}"):
        tiny()(wrong)


def test_rounding_of_half_precision_is_no_wrong_range() -> None:
    clip = frames(1)
    clip[0, 0, 0, 0], clip[0, 0, 0, 1] = 1.0, 0.0
    over = clip * 1.01 - 0.005
    assert torch.equal(tiny()(over), tiny()(over.clamp(0, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frames_of_another_dtype_are_taken(dtype: torch.dtype) -> None:
    assert apart(tiny()(frames(1).to(dtype)), tiny()(frames(1))) < 0.02


# Precision, copies, modes


@pytest.mark.parametrize("context", ["frame", "views", "video"])
def test_bfloat16_agrees_with_float32(context: str) -> None:
    expected = tiny(context=context)(frames())
    prior = tiny(context=context, dtype="bfloat16")
    features = prior(frames())
    assert prior.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert features.dtype == torch.bfloat16
    assert 0 < apart(features.float(), expected) < 0.05


def test_copies_share_the_prior() -> None:
    prior = tiny()
    assert copy.deepcopy([prior])[0] is prior


def test_a_pickle_carries_no_weights() -> None:
    prior = tiny(seed=4, tap=-1, context="views")
    expected = prior(frames())
    data = pickle.dumps(prior)
    assert len(data) < 3000
    twin = pickle.loads(data)
    assert twin.settings == prior.settings
    assert twin.fingerprint == prior.fingerprint
    assert torch.equal(twin(frames()), expected)


def test_a_prior_of_given_modules_pickles_with_them() -> None:
    prior = tiny()
    given = WanPrior(prior.transformer, prior.vae, prior.context, prior.settings)
    data = pickle.dumps(given)
    assert len(data) > 100_000
    assert torch.equal(pickle.loads(data)(frames(1)), prior(frames(1)))


def test_unpickling_notices_weights_that_have_changed(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    prior = wan(folder)
    data = pickle.dumps(prior)
    assert pickle.loads(data).fingerprint == prior.fingerprint
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    rewrite(path, lambda tensors: {**tensors, "blocks.1.norm2.bias": tensors["blocks.1.norm2.bias"] + 1})
    with pytest.raises(PriorError, match=rf"(?s){prior.fingerprint}.*{folder}.*its weights have changed"):
        pickle.loads(data)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_fingerprint_does_not_depend_on_precision_or_use(dtype: str) -> None:
    expected = fresh().fingerprint
    assert len(expected) == 32
    for use_first in (False, True):
        prior = fresh(dtype=dtype, chunk_frames=1)
        if use_first:
            prior(frames(1))
        assert prior.fingerprint == expected, use_first


@pytest.mark.parametrize(
    "change",
    [
        {"timestep": 299},
        {"shift": 3.0},
        {"tap": 1},
        {"seed": 1},
        {"context": "views"},
        {"context": "video"},
        {"size": (48, 32)},
        {"resize": "stretch"},
    ],
)
def test_the_fingerprint_tells_settings_apart(change: dict[str, Any]) -> None:
    assert tiny(**change).fingerprint != tiny().fingerprint


def test_a_tap_from_the_end_is_the_same_tap() -> None:
    assert tiny(tap=-2).fingerprint == tiny(tap=2).fingerprint == tiny().fingerprint


@pytest.mark.parametrize(
    ("part", "key"),
    [("transformer", "blocks.2.ffn.net.2.bias"), ("transformer", "patch_embedding.weight"), ("vae", "quant_conv.bias")],
)
def test_the_fingerprint_tells_weights_apart(diffusers_folder: Path, tmp_path: Path, part: str, key: str) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    rewrite(folder / part / "diffusion_pytorch_model.safetensors", lambda tensors: {**tensors, key: tensors[key] + 0.1})
    assert wan(folder).fingerprint != wan(diffusers_folder).fingerprint
    assert apart(wan(folder)(frames(1)), wan(diffusers_folder)(frames(1))) > 0


def test_the_fingerprint_leaves_out_what_is_not_used(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    for part, prefix in (("transformer", "blocks.3."), ("vae", "decoder.")):
        rewrite(
            folder / part / "diffusion_pytorch_model.safetensors",
            lambda tensors, prefix=prefix: {k: v + 1 if k.startswith(prefix) else v for k, v in tensors.items()},
        )
    assert wan(folder).fingerprint == wan(diffusers_folder).fingerprint
    assert wan(folder, tap=3).fingerprint != wan(diffusers_folder, tap=3).fingerprint


def test_the_prompt_is_part_of_the_fingerprint(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")
    assert wan(folder).fingerprint != wan(diffusers_folder).fingerprint


def test_nothing_of_the_prior_trains() -> None:
    prior = fresh()
    modules = [prior.transformer, prior.vae]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for parent in modules for module in parent.modules())
    clip = frames(1).requires_grad_()
    assert not prior(clip).requires_grad
    assert clip.grad is None
    # It is no module, so a host that holds it does not see its parameters.
    assert not isinstance(prior, nn.Module)


def test_features_made_in_inference_mode_can_be_trained_with() -> None:
    prior = tiny()
    with torch.inference_mode():
        features = prior(frames(1))
    assert not features.is_inference()
    layer = nn.Linear(96, 1)
    layer(features.flatten(2).transpose(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(features, prior(frames(1)))


@pytest.mark.parametrize("context", ["frame", "video"])
def test_autocast_does_not_change_features(context: str) -> None:
    prior = tiny(context=context)
    expected = prior(frames(2))
    with torch.autocast("cpu", torch.bfloat16):
        features = prior(frames(2))
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_torchs_default_dtype_and_device_do_not_change_features() -> None:
    prior, clip = tiny(), frames(2)
    expected = prior(clip)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            features = prior(clip)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(features, expected)


def test_the_chosen_device_is_used() -> None:
    prior = tiny(device="cpu")
    assert prior(frames(1)).device.type == "cpu"
    assert prior.settings.to_dict()["device"] == "cpu"


def test_random_weights_come_with_a_warning() -> None:
    with pytest.warns(RandomWeightsWarning, match="'tiny-wan' has random weights"):
        fresh()


def test_building_it_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    fresh()(frames(1))
    assert torch.equal(torch.randn(3), expected)
