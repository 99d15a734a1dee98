"""The VGGT prior, on a stand-in for the package that has its interface; and without the package."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.small_wan import apart, frames
from support.toys import vggt as toy
from support.toys.vjepa2 import lively
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError
from vega3d_plugin.priors.encoders.vggt import VggtPrior
from vega3d_plugin.priors.frozen.resizing import resize_crop
from vega3d_plugin.priors.load import resolve

SIZE, MAP = (28, 42), (2, 3)


class Grouped(nn.Module):
    """Two frame blocks, then two global ones."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.aggregator = toy.Aggregator(depth=4, aa_block_size=2)


@pytest.fixture(autouse=True)
def package() -> Iterator[None]:
    with toy.installed():
        yield


@pytest.fixture(scope="module")
def model() -> toy.VGGT:
    torch.manual_seed(0)
    return lively(toy.VGGT()).eval()


@pytest.fixture
def folder(model: toy.VGGT, tmp_path: Path) -> Path:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": toy.DIM, "img_size": 518, "patch_size": toy.PATCH}))
    return tmp_path


def vggt(folder: Path, **settings: Any) -> VggtPrior:
    prior = vega3d.load_prior("vggt", pretrained=folder, **{"size": SIZE, **settings})
    assert isinstance(prior, VggtPrior)
    return prior


@torch.no_grad()
def tapped(model: Any, views: Tensor, tap: int) -> Tensor:
    """Patch tokens as maps ``[S, C, h, w]`` of views that are attended jointly; in [0, 1], as the package wants."""
    tokens = model.aggregator(resize_crop(views, SIZE)[None])[0][tap][0, :, toy.SPECIAL :]
    return tokens.unflatten(1, MAP).movedim(-1, 1)


@pytest.mark.parametrize("tap", [0, 1, 2, -1])
def test_patch_tokens_of_views_that_see_each_other(model: toy.VGGT, folder: Path, tap: int) -> None:
    clip, prior = frames(3), vggt(folder, tap=tap)
    assert prior.settings.context == "views"
    features = prior(clip)
    assert features.shape == (3, 2 * toy.DIM, *MAP)
    torch.testing.assert_close(features, tapped(model, clip, tap), rtol=1e-4, atol=1e-4)


def test_views_in_windows_as_released(model: toy.VGGT, folder: Path) -> None:
    """Chunks of eight that share no frame, each with its own reference."""
    clip = frames(16)
    expected = torch.cat([tapped(model, clip[:8], -1), tapped(model, clip[8:], -1)])
    prior = vggt(folder)
    assert (prior.settings.window, prior.settings.overlap) == (8, 0)
    torch.testing.assert_close(prior(clip), expected, rtol=1e-4, atol=1e-4)
    assert apart(vggt(folder, window=16)(clip), expected) > 1e-3


def test_frames_alone(model: toy.VGGT, folder: Path) -> None:
    clip, prior = frames(3), vggt(folder, context="frame")
    expected = torch.cat([tapped(model, frame[None], -1) for frame in clip])
    torch.testing.assert_close(prior(clip), expected, rtol=1e-4, atol=1e-4)
    for chunk in (1, 2):
        features = vggt(folder, context="frame", chunk_frames=chunk)(clip)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert apart(vggt(folder)(clip)[1:], expected[1:]) > 1e-3


def test_the_fast_path_and_no_pickled_weights(folder: Path) -> None:
    clip = frames(5, 60, 61)
    for context in ("frame", "views"):
        settings = {"context": context, "size": (126, 140)}
        plain, prior = vggt(folder, fast=False, **settings)(clip), vggt(folder, **settings)
        torch.testing.assert_close(prior(clip), plain, rtol=1e-4, atol=1e-4)
    data = pickle.dumps(prior)
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data)(clip), prior(clip))


def test_half_precision(folder: Path) -> None:
    # The package's own constants are in float32, and would turn the pixels back.
    prior = vggt(folder, dtype="bfloat16")
    features = prior(frames(2))
    assert features.dtype == torch.bfloat16
    assert apart(features.float(), vggt(folder)(frames(2))) < 0.05
    assert prior.fingerprint == vggt(folder).fingerprint


def test_positions_that_the_package_keeps_do_not_stay_on_another_device(folder: Path) -> None:
    prior = vggt(folder)
    kept = {SIZE: torch.zeros(1, device="meta")}
    prior.aggregator.position_getter = type("Getter", (), {"position_cache": kept})()
    prior(frames(1))
    assert not kept


@pytest.mark.parametrize("tap", [0, 1])
def test_what_is_behind_the_tap_is_not_held(folder: Path, tap: int) -> None:
    aggregator = vggt(folder, tap=tap).aggregator
    assert (len(aggregator.frame_blocks), len(aggregator.global_blocks)) == (tap + 1, tap + 1)
    assert len(vggt(folder, tap=tap).repeated_parts()) == 2 * (tap + 1)


@pytest.mark.parametrize("tap", [0, 1, 2, 3])
def test_blocks_that_take_turns_in_groups(tmp_path: Path, tap: int) -> None:
    torch.manual_seed(0)
    model = lively(Grouped()).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with toy.installed(VGGT=Grouped):
        features = vggt(tmp_path, tap=tap)(frames(2))
    torch.testing.assert_close(features, tapped(model, frames(2), tap), rtol=1e-4, atol=1e-4)


def test_neither_heads_nor_later_blocks_are_read(model: toy.VGGT, folder: Path) -> None:
    expected = vggt(folder, tap=1)
    behind = ("depth_head.", "aggregator.frame_blocks.2.", "aggregator.global_blocks.2.")
    kept = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(behind)}
    save_file(kept, folder / "model.safetensors")
    assert torch.equal(vggt(folder, tap=1)(frames(1)), expected(frames(1)))
    with pytest.raises(CheckpointError, match=r"does not fit Aggregator: missing frame_blocks\.2"):
        vggt(folder)


def test_a_folder_as_the_released_code_wants_it(model: toy.VGGT, folder: Path, tmp_path: Path) -> None:
    """``model.pt`` alone."""
    (tmp_path / "released").mkdir()
    torch.save(model.state_dict(), tmp_path / "released" / "model.pt")
    prior = vggt(tmp_path / "released", tap=1)
    assert prior.fingerprint == vggt(folder, tap=1).fingerprint
    assert torch.equal(prior(frames(2)), vggt(folder, tap=1)(frames(2)))


def test_the_size_of_the_model_is_read(tmp_path: Path) -> None:
    save_file(toy.VGGT(embed_dim=6, patch_size=7).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": 6, "patch_size": 7, "unknown": 1}))
    prior = vggt(tmp_path)
    assert (prior.feature_dim, prior.stride) == (12, 7)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def _replaced(folder: Path, tensors: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "model.pt")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"is no VGGT: expected model\.safetensors or model\.pt\. Found: config\.json",
    ),
    "another model": (
        lambda f: save_file({"encoder.weight": torch.zeros(1)}, f / "model.safetensors"),
        r"it has no aggregator\.camera_token",
    ),
    "another pickle": (
        partial(_replaced, tensors={"model": torch.zeros(1)}),
        r"model\.pt is of another architecture: it has no aggregator\.camera_token",
    ),
    "a malicious pickle": (
        lambda f: _replaced(f, {"aggregator.camera_token": Malicious(f / "trace")}),
        r"model\.pt cannot be read as plain weights",
    ),
    "another size": (
        lambda f: (f / "config.json").write_text(json.dumps({"embed_dim": 24})),
        r"does not fit Aggregator(?s:.*)size mismatch",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(folder: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        vggt(folder)
    assert not (folder / "trace").exists()


def test_taps_and_sizes_out_of_range(folder: Path) -> None:
    with pytest.raises(PriorError, match=r"\[-3, 2\], got 3"):
        vggt(folder, tap=3)
    with pytest.raises(PriorError, match=r"divisible by 14.*The nearest is 28x42"):
        vggt(folder, size=(30, 42))


def test_the_released_preset() -> None:
    settings = resolve(vega3d.PriorSettings(name="vggt", preset="released"))
    assert (settings.size, settings.window, settings.overlap, settings.context) == ((196, 196), 32, 0, "views")


def test_a_package_that_is_something_else(folder: Path) -> None:
    with toy.installed():
        del sys.modules["vggt.models.vggt"].VGGT
        with pytest.raises(PriorError, match=r"needs the package vggt, with vggt\.models\.vggt\.VGGT.*AttributeError"):
            vggt(folder)


@pytest.mark.skipif(importlib.util.find_spec("vggt") is not None, reason="the package is installed")
def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vggt", "vggt.models", "vggt.models.vggt"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PriorError, match=r"needs the package vggt.*No module named 'vggt'.*pip install git"):
        vggt(folder)
