"""The prior ``external``: features that were computed elsewhere, found by the content of the clip."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.small_wan import frames
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.clips import Clip, clip_key
from vega3d_plugin.contracts.errors import CheckpointError, FramesError, PriorError, SavedBranchError, SettingsError
from vega3d_plugin.features import FeatureStore
from vega3d_plugin.priors.yours.external import ExternalPrior
from vega3d_plugin.priors.yours.function import CallablePrior

CLIP = frames(3)
KEY = clip_key(CLIP)
MAP = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))


def external(folder: Path, **settings: Any) -> ExternalPrior:
    prior = vega3d.load_prior("external", pretrained=folder, **settings)
    assert isinstance(prior, ExternalPrior)
    return prior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"features": MAP}, tmp_path / f"{KEY}.safetensors")
    return tmp_path


def test_the_key_is_that_of_the_branch() -> None:
    assert Clip(CLIP, vega3d.TokenGrid(3, 2, 2)).key == KEY
    # Pinned, because files of users are named so: 32 hex digits of the shape and of the pixels in 8 bits.
    assert clip_key(torch.linspace(0, 1, 24).reshape(2, 3, 2, 2)) == "48609c70c2b968733d2875eda9131356"
    assert clip_key(CLIP.double()) == KEY
    assert clip_key((CLIP * 255).round() / 255) == KEY
    assert clip_key(CLIP[:2]) != KEY
    assert clip_key(CLIP.transpose(2, 3)) != KEY


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda f: save_file({"features": MAP}, f / f"{KEY}.safetensors"),
    "any name": lambda f: save_file({"x": MAP}, f / f"{KEY}.safetensors"),
    "one of many": lambda f: save_file({"x": torch.zeros(1), "features": MAP}, f / f"{KEY}.safetensors"),
    "npy": lambda f: np.save(f / f"{KEY}.npy", MAP.numpy()),
    "foreign bytes": lambda f: np.save(f / f"{KEY}.npy", MAP.numpy().astype(">f4")),
    "in a subfolder": lambda f: [
        (f / KEY[:2]).mkdir(),
        save_file({"features": MAP}, f / KEY[:2] / f"{KEY}.safetensors"),
    ],
    "npy in a subfolder": lambda f: [(f / KEY[:2]).mkdir(), np.save(f / KEY[:2] / f"{KEY}.npy", MAP.numpy())],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_features_of_a_clip(tmp_path: Path, writer: str) -> None:
    WRITERS[writer](tmp_path)
    prior = external(tmp_path)
    assert prior.feature_dim == 5
    features = prior(CLIP)
    assert torch.equal(features, MAP)
    assert not features.requires_grad


def test_frames_last(tmp_path: Path) -> None:
    np.save(tmp_path / f"{KEY}.npy", MAP.movedim(1, -1).numpy())
    prior = external(tmp_path, layout="thwc")
    assert prior.feature_dim == 5
    assert torch.equal(prior(CLIP), MAP)


def test_the_folder_of_a_feature_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.bind(CallablePrior(lambda clip: clip, feature_dim=5, fingerprint="any"))
    store.put(KEY, MAP)
    other = 1 - CLIP
    store.put(f"{clip_key(other)}-bfloat16", MAP.bfloat16())
    prior = external(tmp_path)
    assert torch.equal(prior(CLIP), MAP)
    assert torch.equal(prior(other), MAP.bfloat16())


def test_dtype_and_inference_mode(folder: Path) -> None:
    assert external(folder, dtype="bfloat16")(CLIP).dtype == torch.bfloat16
    with torch.inference_mode():
        features = external(folder)(CLIP)
    assert not features.is_inference()


def test_a_clip_that_is_not_there(folder: Path) -> None:
    clip = 1 - CLIP
    message = (
        rf"{folder} has no features of clip {clip_key(clip)} \(frames \[3, 3, 40, 50\]\)\. It has 1 files such as "
        rf"{KEY}\.safetensors\. Compute them, save them as {clip_key(clip)}\.safetensors.*clip_key\(frames\)"
    )
    with pytest.raises(PriorError, match=message):
        external(folder)(clip)
    with pytest.raises(FramesError, match=r"in \[0, 1\]"):
        external(folder)(CLIP * 2)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "flat": (
        lambda f: save_file({"x": MAP[0]}, f),
        r"has shape \[5, 2, 4\], expected \[T', C, h, w\] \(layout",
    ),
    "empty": (lambda f: save_file({"x": MAP[:0]}, f), r"has shape \[0, 5, 2, 4\]"),
    "whole numbers": (lambda f: save_file({"x": MAP.int()}, f), r"has dtype torch\.int32, expected floating point"),
    "two tensors": (
        lambda f: save_file({"a": MAP, "b": MAP.clone()}, f),
        r"holds the tensors a, b, expected one, or one named 'features'",
    ),
    "cut": (lambda f: f.write_bytes(b"none"), r"is damaged or incomplete .*Write it again"),
}
WRONG_ARRAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "objects": (
        lambda f: np.save(f, np.array([{}], dtype=object), allow_pickle=True),
        "no plain array .*pickled",
    ),
    "cut": (lambda f: f.write_bytes(b"\x93NUMPY"), "is damaged or no plain array"),
    "whole numbers": (lambda f: np.save(f, MAP.int().numpy()), "has dtype int32, expected float16"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_files_that_cannot_be_used(tmp_path: Path, wrong: str) -> None:
    write, message = WRONG[wrong]
    write(tmp_path / f"{KEY}.safetensors")
    with pytest.raises(CheckpointError, match=rf"{KEY}\.safetensors {message}"):
        external(tmp_path)
    # Also when it is not the first, from which the number of channels is read.
    prior = external(tmp_path, feature_dim=5)
    with pytest.raises(CheckpointError, match=rf"{KEY}\.safetensors {message}"):
        prior(CLIP)


@pytest.mark.parametrize("wrong", WRONG_ARRAY)
def test_arrays_that_cannot_be_used(tmp_path: Path, wrong: str) -> None:
    write, message = WRONG_ARRAY[wrong]
    write(tmp_path / f"{KEY}.npy")
    with pytest.raises(CheckpointError, match=rf"{KEY}\.npy .*{message}"):
        external(tmp_path)


def test_another_number_of_channels(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 5 channels \(shape \[3, 5, 2, 4\] in layout 'tchw'\), expected 6"):
        external(folder, feature_dim=6)(CLIP)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs `pretrained`: the folder with the features"):
        vega3d.load_prior("external")
    with pytest.raises(CheckpointError, match=r"holds no features: expected files <clip key>\.safetensors"):
        external(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"'nobody/nothing' is no folder here\. `external` does not download from the hub"
    ):
        external(Path("nobody/nothing"))
    with pytest.raises(SettingsError, match=r"layout: .*'htwc'"):
        external(tmp_path, layout="htwc")


def test_the_fingerprint(folder: Path) -> None:
    first = external(folder).fingerprint
    assert external(folder).fingerprint == first
    assert external(folder, feature_dim=5).fingerprint == first
    named = external(folder, made_by="seva 1.1").fingerprint
    assert named != first
    save_file({"features": MAP}, folder / f"{clip_key(1 - CLIP)}.safetensors")
    assert external(folder).fingerprint != first
    # With a name, files may come and go.
    assert external(folder, made_by="seva 1.1").fingerprint == named
    assert external(folder, made_by="seva 1.2").fingerprint != named
    # Where as many channels as columns, the shape says nothing about the layout.
    both = [external(folder, made_by="a", feature_dim=5, layout=layout).fingerprint for layout in ("tchw", "thwc")]
    assert both[0] != both[1]


def test_a_pickle_carries_no_features(folder: Path) -> None:
    data = pickle.dumps(external(folder))
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data)(CLIP), MAP)


# The whole way: note the frames that a host sees, compute elsewhere, train with it, save, and load.

HOST = next(host for host in hosts.HOSTS if host.name == "qwen2_5_vl")


def noted(batch: dict[str, Any]) -> dict[str, Tensor]:
    """As the module's docstring says."""
    seen: dict[str, Tensor] = {}

    def note(clip: Tensor) -> Tensor:
        seen[clip_key(clip)] = clip
        return clip.new_zeros(clip.shape[0], 8, 1, 1)

    model = vega3d.patch(HOST.build(), prior=CallablePrior(note, feature_dim=8, fingerprint="none"))
    hosts.logits(model, batch)
    return seen


def test_from_a_host_to_a_saved_branch(tmp_path: Path) -> None:
    batch, folder = HOST.batch(), tmp_path / "features"
    folder.mkdir()
    clips = noted(batch)
    assert len(clips) == 3  # two images and a video
    for key, clip in clips.items():
        colours = clip.flatten(2).mean(dim=2)[:, :, None, None].repeat(1, 4, 3, 2)
        save_file({"features": colours}, folder / f"{key}.safetensors")
    options = {"pretrained": folder, "options": {"made_by": "colours 1"}}
    model = vega3d.patch(HOST.build(), "external", init="released", projector=hosts.PROJECTOR, **options)
    expected = hosts.logits(model, batch)
    assert not torch.equal(expected, hosts.logits(HOST.build(), batch))
    vega3d.save_pretrained(model, tmp_path / "branch")
    record = json.loads((tmp_path / "branch" / "vega3d_config.json").read_text())
    assert record["prior"]["name"] == "external"
    assert record["prior"]["feature_dim"] == 12
    folder = folder.rename(tmp_path / "moved")
    again = vega3d.load_pretrained(HOST.build(), tmp_path / "branch", pretrained=folder)
    assert torch.equal(hosts.logits(again, batch), expected)
    other = vega3d.load_prior("external", pretrained=folder, made_by="colours 2")
    with pytest.raises(SavedBranchError, match="fingerprint"):
        vega3d.load_pretrained(HOST.build(), tmp_path / "branch", prior=other)
