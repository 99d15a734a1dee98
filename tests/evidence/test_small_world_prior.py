"""``small-world`` as a prior: from a folder of its training script, with the features that training saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world.measure import PALE, MovedPoints
from small_world.model import block_outputs, build_transformer, load_transformer, to_frames, to_latents
from small_world.worlds import WorldSettings, draw_worlds
from support.checkpoints import copy_of

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.wan import small_world
from vega3d_plugin.priors.wan.small_world.prior import SmallWorldPrior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_world")
    build_transformer(width=32, blocks=3, seed=5).save_pretrained(folder / "transformer")
    return folder


def test_features_are_those_of_the_training_s_own_forward_pass(folder: Path) -> None:
    frames = draw_worlds(WorldSettings(frames=3), 1, seed=3).render()
    prior = vega3d.load_prior("small-world", pretrained=folder, tap=1)
    assert isinstance(prior, SmallWorldPrior)
    level = prior.noise_level()
    noise = draw_noise((3, 24, 24), 0, range(3)).transpose(0, 1)[None]
    noisy = (1 - level.sigma) * to_latents(frames) + level.sigma * noise
    transformer = load_transformer(folder / "transformer").float()
    expected = block_outputs(transformer, noisy, torch.full((1, 3), level.tau / 1000))[1][0]
    features = prior(frames[0]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


def test_the_package_s_weights_find_moved_points_and_untrained_ones_do_not(tmp_path: Path) -> None:
    points = MovedPoints(PALE, count=24, seed=77)
    clips = to_frames(points.latents)
    trained = vega3d.load_prior("small-world")
    build_transformer(seed=1).save_pretrained(tmp_path / "transformer")
    twin = vega3d.load_prior("small-world", pretrained=tmp_path)

    def recall(prior: Prior) -> float:
        return points.recall(torch.stack([prior(clip).flatten(2).transpose(1, 2) for clip in clips]))

    assert int(points.counted.sum()) > 500
    assert recall(trained) > 1.6 * recall(twin) > 0.3


def test_the_package_s_weights_are_small() -> None:
    files = list(Path(small_world.__file__).parent.rglob("*.safetensors"))
    assert len(files) == 1
    assert files[0].stat().st_size < 12e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (24, 195)}, "64 tokens a side.*at most 192 pixels, got 24x195"),
        ({"size": (25, 24)}, "divisible by 3"),
        ({"window": 65, "overlap": 2}, "window is 1 to 64, got 65"),
        ({"tap": 3}, r"the tap is in \[-3, 2\], got 3"),
        ({"context": "video"}, "no context 'video'"),
    ],
)
def test_settings_that_it_cannot_serve(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        vega3d.load_prior("small-world", pretrained=folder, **{"tap": 1, **settings})


def test_frames_see_each_other_by_default(folder: Path) -> None:
    frames = draw_worlds(WorldSettings(frames=2), 1, seed=3).render()[0]
    prior = vega3d.load_prior("small-world", pretrained=folder, tap=1)
    assert (prior(frames)[0] - prior(frames[:1])[0]).abs().max() > 1e-3
    alone = vega3d.load_prior("small-world", pretrained=folder, tap=1, context="frame")
    torch.testing.assert_close(alone(frames)[:1], alone(frames[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 16}, "in_channels as 16, expected 3.*wan2.1-t2v-1.3b"),
        ({"patch_size": [1, 2, 3]}, r"patch_size as \[1, 2, 3\], expected \[1, n, n\]"),
        ({"patch_size": 3}, r"patch_size as 3, expected \[1, n, n\]"),
        ({"patch_size": [1, 0, 0]}, "patch_size.*whole numbers"),
        ({"attention_head_dim": 10**9}, "attention_head_dim is 1000000000, more than any model has"),
        ({"rope_max_seq_len": "many"}, "rope_max_seq_len as 'many'"),
        ({"eps": "small"}, "eps as 'small'"),
        ({"attention_head_dim": 1}, "describes no WanTransformer3DModel|does not fit"),
        ({"num_layers": None}, "num_layers as None"),
        ({"attention_head_dim": 8}, "does not fit WanTransformer3DModel"),
    ],
)
def test_other_transformers_are_refused(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    file = copied / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        vega3d.load_prior("small-world", pretrained=copied, tap=0)


def _no_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def _damaged_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)


def _damaged_config(folder: Path) -> None:
    (folder / "transformer" / "config.json").write_bytes(b"\xff{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_no_weights, "incomplete"), (_damaged_weights, "damaged"), (_damaged_config, "no valid JSON")],
)
def test_a_damaged_folder(folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    damage(copied)
    with pytest.raises(CheckpointError, match=message):
        vega3d.load_prior("small-world", pretrained=copied, tap=0)
