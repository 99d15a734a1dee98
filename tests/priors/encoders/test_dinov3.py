"""The DINOv3 priors compute what transformers' unmodified models compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_wan import apart, frames
from support.toys import dinov3 as toy
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.encoders import encoder
from vega3d_plugin.priors.encoders.dinov3 import Dinov3Prior

here = pytest.mark.skipif(not toy.TOYS, reason="this transformers has no DINOv3")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT, CONVNEXT = "dinov3-vitl", "dinov3-convnext-large"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    writers: dict[str, Callable[[Path], None]]
    writers = {VIT: toy.write_vit, "gated": toy.write_gated_vit, CONVNEXT: toy.write_convnext}
    made = {}
    for name, write in writers.items():
        made[name] = tmp_path_factory.mktemp(name)
        write(made[name])
    return made


def dino(name: str, folder: Path, **settings: Any) -> Dinov3Prior:
    size = (32, 48) if name == VIT else (64, 96)
    prior = vega3d.load_prior(name, pretrained=folder, **{"size": size, **settings})
    assert isinstance(prior, Dinov3Prior)
    return prior


def normalised(clip: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    return (clip - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@torch.no_grad()
def hooked(model: Any, module: Any, pixels: Tensor) -> Tensor:
    """What a module inside the whole model gives."""
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, args, out: kept.append(out))
    model(pixels)
    hook.remove()
    return kept[0]


@here
@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("folder", [VIT, "gated"])
def test_patch_tokens_of_a_layer_behind_the_last_norm(folders: dict[str, Path], folder: str, tap: int) -> None:
    from transformers import DINOv3ViTModel

    model = DINOv3ViTModel.from_pretrained(folders[folder]).eval()
    clip = frames(2, 32, 48)
    layers = getattr(model, "layer", None) or model.model.layer
    tokens = model.norm(hooked(model, layers[tap], normalised(clip)))
    # A class token and four registers are in front.
    expected = tokens[:, 5:].unflatten(1, (2, 3)).movedim(-1, 1)
    torch.testing.assert_close(dino(VIT, folders[folder], tap=tap)(clip), expected, rtol=1e-4, atol=1e-4)


@here
@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_the_default_is_the_models_output(folders: dict[str, Path], name: str) -> None:
    from transformers import AutoModel

    model, clip = AutoModel.from_pretrained(folders[name]).eval(), frames(2, 64, 96)
    features = dino(name, folders[name], size=(64, 96))(clip)
    with torch.no_grad():
        tokens = model(normalised(clip)).last_hidden_state
    expected = tokens[:, -features.shape[-2] * features.shape[-1] :]
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


@here
@pytest.mark.parametrize("tap", [0, 1, 2, 3])
def test_stages_of_a_convnext(folders: dict[str, Path], tap: int) -> None:
    from transformers import DINOv3ConvNextModel

    model, clip = DINOv3ConvNextModel.from_pretrained(folders[CONVNEXT]).eval(), frames(2, 64, 96)
    stages = getattr(model, "stages", None) or model.model.stages
    expected = hooked(model, stages[tap], normalised(clip))
    if tap == 3:  # the norm belongs to the last stage alone
        expected = model.layer_norm(expected.movedim(1, -1)).movedim(-1, 1)
    prior = dino(CONVNEXT, folders[CONVNEXT], tap=tap)
    features = prior(clip)
    assert features.shape == (2, toy.CONVNEXT["hidden_sizes"][tap], 16 >> tap, 24 >> tap)
    assert (prior.feature_dim, prior.stride) == (features.shape[1], 4 << tap)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@here
@pytest.mark.parametrize(("tap", "index"), [(-1, 3), (-4, 0)])
def test_stages_from_the_end(folders: dict[str, Path], tap: int, index: int) -> None:
    assert dino(CONVNEXT, folders[CONVNEXT], tap=tap).settings.tap == index
    with pytest.raises(PriorError, match=r"\[-4, 3\], got 4"):
        dino(CONVNEXT, folders[CONVNEXT], tap=4)


@here
@pytest.mark.parametrize(
    ("name", "tap", "unused"),
    [
        (VIT, 1, ("layer.2.", "model.layer.2.")),
        (CONVNEXT, 1, ("stages.2.", "stages.3.", "model.stages.2.", "model.stages.3.", "layer_norm.")),
    ],
)
def test_what_is_behind_the_tap_is_not_read(
    folders: dict[str, Path], tmp_path: Path, name: str, tap: int, unused: tuple[str, ...]
) -> None:
    tensors = load_file(folders[name] / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[name] / "config.json").read_text())
    assert torch.equal(dino(name, tmp_path, tap=tap)(frames(1)), dino(name, folders[name], tap=tap)(frames(1)))
    with pytest.raises(CheckpointError, match=r"does not fit DINOv3.*missing"):
        dino(name, tmp_path)


@here
@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_names_of_both_versions_of_transformers_are_read(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Blocks are below ``model.`` in transformers 5, and not in the files on the hub."""
    tensors = load_file(folders[name] / "model.safetensors")
    blocks = ("layer.", "stages.")
    assert any(key.startswith(blocks) for key in tensors)
    renamed = {f"model.{key}" if key.startswith(blocks) else key: tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[name] / "config.json").read_text())
    assert torch.equal(dino(name, tmp_path)(frames(1)), dino(name, folders[name])(frames(1)))


@here
def test_pixels_are_normalised_as_the_checkpoint_says(folders: dict[str, Path], tmp_path: Path) -> None:
    """The weights for satellite pictures have another mean and standard deviation."""
    from transformers import DINOv3ViTModel

    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders[VIT] / file).read_bytes())
    statistics = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    clip, prior = frames(1, 32, 48), dino(VIT, tmp_path)
    with torch.no_grad():
        model = DINOv3ViTModel.from_pretrained(tmp_path).eval()
        expected = model(normalised(clip, *statistics.values())).last_hidden_state[:, 5:]
    torch.testing.assert_close(prior(clip).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    usual = dino(VIT, folders[VIT])
    assert prior.fingerprint != usual.fingerprint
    assert apart(prior(clip), usual(clip)) > 1e-2
    # ImageNet's, written down, are the same as none.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    assert dino(VIT, tmp_path).fingerprint == usual.fingerprint
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(CheckpointError, match=r"image_mean \[0\.5\].*expected three numbers"):
        dino(VIT, tmp_path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing. Found: model\.safetensors"),
    "timm's layout": (
        lambda f: (f / "config.json").write_text(json.dumps({"architecture": "vit_large_patch16_dinov3"})),
        r"'vit_large_patch16_dinov3' in timm's layout; expected transformers' layout.*facebook/dinov3-vitl16-pretrain",
    ),
    "another model": (
        lambda f: (f / "config.json").write_text(json.dumps({"model_type": "dinov2"})),
        r"model_type is 'dinov2', expected dinov3_vit",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"it has no model\*\.safetensors"),
}


@here
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders[VIT] / name).read_bytes())
    change, message = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        dino(VIT, tmp_path)


@here
def test_a_convnext_is_no_vit(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="model_type is 'dinov3_convnext', expected dinov3_vit"):
        dino(VIT, folders[CONVNEXT])
    with pytest.raises(CheckpointError, match="model_type is 'dinov3_vit', expected dinov3_convnext"):
        dino(CONVNEXT, folders[VIT])


@here
def test_compile_is_given_the_blocks(folders: dict[str, Path]) -> None:
    assert len(dino(VIT, folders[VIT], tap=1).repeated_parts()) == 2
    assert len(dino(CONVNEXT, folders[CONVNEXT]).repeated_parts()) == sum(toy.CONVNEXT["depths"])


def test_it_has_no_time() -> None:
    with pytest.raises(PriorError, match=r"'dinov3-vitl' has no context 'views'\. It has: frame"):
        vega3d.load_prior(VIT, context="views")


def test_sources() -> None:
    sources = {name: plugin_manager().priors.get(name).source for name in vega3d.list_priors("dinov3*")}
    assert sources[VIT] == "facebook/dinov3-vitl16-pretrain-lvd1689m"
    assert sources["dinov3-vith-plus"] == "facebook/dinov3-vith16plus-pretrain-lvd1689m"
    assert sources["dinov3-vit7b"] == "facebook/dinov3-vit7b16-pretrain-lvd1689m"
    assert sources[CONVNEXT] == "facebook/dinov3-convnext-large-pretrain-lvd1689m"


def test_an_old_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    if toy.TOYS:
        monkeypatch.setattr(transformers, "__version__", "4.50.0")
        monkeypatch.setattr(encoder, "hasattr", lambda thing, name: False, raising=False)
    for name, needed in ((VIT, "DINOv3ViTConfig"), (CONVNEXT, "DINOv3ConvNextConfig")):
        with pytest.raises(PriorError, match=rf"needs transformers with {needed} \(4\.56 or later\), found 4\.50\.0"):
            dino(name, tmp_path)
