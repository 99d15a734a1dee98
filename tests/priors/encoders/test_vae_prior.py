"""The VAE alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small_wan import close, frames
from support.toys.stable_diffusion import write, write_vae

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, SettingsError
from vega3d_plugin.priors.encoders.image_vae import VaePrior
from vega3d_plugin.priors.load import resolve

SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae")
    write_vae(path)
    return path


def load(folder: Path, **settings: Any) -> VaePrior:
    prior = vega3d.load_prior("sd2.1-vae", pretrained=folder, **{"size": SIZE, **settings})
    assert isinstance(prior, VaePrior)
    return prior


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_it_gives_the_means_of_the_whole_vae(folder: Path, pool: int) -> None:
    from diffusers import AutoencoderKL

    clip, vae = frames(3, *SIZE), AutoencoderKL.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        expected = vae.encode(clip * 2 - 1).latent_dist.mean * 0.18215
    close(load(folder, pool=pool)(clip), F.avg_pool2d(expected, pool))


def test_the_defaults_are_the_released_ones() -> None:
    settings = resolve(vega3d.PriorSettings(name="sd2.1-vae"))
    assert (settings.size, settings.resize, settings.options) == ((224, 224), "crop", {"pool": 2})


def test_noise_has_no_part_in_it(folder: Path) -> None:
    prior = load(folder)
    for other in (load(folder, seed=1), load(folder, timestep=900)):
        assert other.fingerprint == prior.fingerprint
        assert torch.equal(other(frames(2)), prior(frames(2)))
    assert load(folder, pool=1).fingerprint != prior.fingerprint


def test_it_has_no_tap(folder: Path) -> None:
    with pytest.raises(PriorError, match=r"no blocks to choose from, got tap=3\. Leave it out"):
        load(folder, tap=3)


def test_it_has_one_context(folder: Path) -> None:
    with pytest.raises(PriorError, match="It has: frame"):
        load(folder, context="views")


@pytest.mark.parametrize("pool", [0, 1.5, "2"])
def test_a_wrong_window(folder: Path, pool: object) -> None:
    with pytest.raises(SettingsError, match="pool"):
        load(folder, pool=pool)


def test_sizes(folder: Path) -> None:
    assert load(folder, size=(40, 48))(frames(1)).shape == (1, 4, 2, 3)
    with pytest.raises(PriorError, match=r"divisible by 8 .*got 36x48"):
        load(folder, size=(36, 48))


def test_it_is_read_from_a_whole_checkpoint_and_from_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "sd")
    expected = load(folder)(frames(2))
    close(load(tmp_path / "sd")(frames(2)), expected)
    close(load(folder / "vae")(frames(2)), expected)
    sd = vega3d.load_prior("sd2.1", pretrained=tmp_path / "sd", size=SIZE)
    close(load(folder, pool=1)(frames(2)), sd.encode(frames(2)))  # type: ignore[attr-defined]


def test_folders_without_a_vae(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no vae/, and is no VAE itself"):
        load(tmp_path)
    shutil.copytree(folder, tmp_path / "video")
    config = tmp_path / "video" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"AutoencoderKL"', '"AutoencoderKLWan"'))
    with pytest.raises(CheckpointError, match=r"'AutoencoderKLWan', expected AutoencoderKL"):
        load(tmp_path / "video")
