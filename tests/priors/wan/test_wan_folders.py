"""Wan weights from folders: both layouts, whole or not; and what a fingerprint tells apart."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import goldens
from support.checkpoints import copy_of, cut, edit, rewrite
from support.small_wan import MAP, SIZE, apart, close, frames, tiny

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, PromptError
from vega3d_plugin.priors.wan.prior import WanPrior


def wan(folder: Path, **settings: Any) -> WanPrior:
    prior = vega3d.load_prior("wan2.1-t2v-1.3b", pretrained=folder, **{"size": SIZE, "tap": 2, **settings})
    assert isinstance(prior, WanPrior)
    return prior


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


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_shards_with_an_index(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(f"{layout}_folder")
    folder = copy_of(source, tmp_path)
    part = folder / "transformer" if layout == "diffusers" else folder
    shards = split(part / "diffusion_pytorch_model.safetensors")
    close(wan(folder)(frames(1)), wan(source)(frames(1)))
    assert wan(folder).fingerprint == wan(source).fingerprint
    (part / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"incomplete: .*index\.json names {shards[1]}, which is missing"):
        wan(folder)


def test_a_missing_folder_is_named_with_near_misses(diffusers_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/difusers does not exist\. Did you mean 'diffusers'"):
        wan(diffusers_folder.with_name("difusers"))
    with pytest.raises(CheckpointError, match="/no/such/folder does not exist"):
        wan(Path("/no/such/folder"))


def test_a_file_is_no_folder(diffusers_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"empty_prompt\.safetensors is a file"):
        wan(diffusers_folder / "empty_prompt.safetensors")


def test_a_hub_id_that_cannot_be_fetched_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'nobody/nothing' is no folder here and could not be downloaded"):
        wan(Path("nobody/nothing"))


DIFFUSERS_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (
        lambda f: [shutil.rmtree(f), f.mkdir()],
        r"is no Wan checkpoint with text-to-video weights: expected .*Found: nothing",
    ),
    "no transformer": (
        lambda f: shutil.rmtree(f / "transformer"),
        r"is no Wan checkpoint.*Found: empty_prompt.*vae/",
    ),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), r"copy is incomplete: it has no vae/\. Found: empty_prompt"),
    "no transformer config": (
        lambda f: (f / "transformer" / "config.json").unlink(),
        r"transformer is incomplete: config\.json is missing\. Found: diffusion_pytorch_model\.safetensors",
    ),
    "no vae config": (lambda f: (f / "vae" / "config.json").unlink(), r"vae is incomplete: config\.json is missing"),
    "no weights": (
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
        r"transformer is incomplete: it has no diffusion_pytorch_model\*\.safetensors\. Found: config\.json",
    ),
    "no vae weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        r"vae is incomplete: it has no diffusion_pytorch_model",
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
        r"diffusion_pytorch_model\.safetensors is damaged or incomplete .*Download it again",
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
        r"does not fit WanTransformer3DModel(?s:.*)missing patch_embedding\.bias",
    ),
}


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


def test_unpickling_notices_weights_that_have_changed(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    prior = wan(folder)
    data = pickle.dumps(prior)
    assert pickle.loads(data).fingerprint == prior.fingerprint
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    rewrite(path, lambda tensors: {**tensors, "blocks.1.norm2.bias": tensors["blocks.1.norm2.bias"] + 1})
    with pytest.raises(PriorError, match=rf"(?s){prior.fingerprint}.*{folder}.*its weights have changed"):
        pickle.loads(data)


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


def test_the_scale_of_the_latents_is_part_of_the_fingerprint(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    edit(folder / "vae" / "config.json", latents_std=[2.0] * 16)
    assert wan(folder).fingerprint != wan(diffusers_folder).fingerprint
    assert apart(wan(folder)(frames(1)), wan(diffusers_folder)(frames(1))) > 0.01


def test_the_prompt_is_part_of_the_fingerprint(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(diffusers_folder, tmp_path)
    save_file({"context": torch.randn(1, 16)}, folder / "empty_prompt.safetensors")
    assert wan(folder).fingerprint != wan(diffusers_folder).fingerprint
