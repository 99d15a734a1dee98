"""Training: features that hold the answer are read out, features that hold nothing are not."""

from __future__ import annotations

import numpy as np
import pytest
import read_scenes
import torch
from torch import Tensor

from vega3d_plugin.analysis.controls import position_only
from vega3d_plugin.analysis.readouts.judging import judge_depth, judge_head, predicted_depth
from vega3d_plugin.analysis.readouts.training import (
    FeatureScene,
    Standard,
    TrainingSettings,
    half_cosine,
    train_depth_head,
    train_head,
    warmup_cosine,
)
from vega3d_plugin.contracts.errors import AnalysisError, UnknownNameError

SEEDS, HELD_OUT = range(8), (6, 7)
SETTINGS = TrainingSettings(steps=150, lr=3e-3, start="first", depth_steps=100)
CPU = torch.device("cpu")

Scores = dict[str, float]


def read(maps: list[Tensor], settings: TrainingSettings = SETTINGS) -> tuple[Scores, list[Scores]]:
    standard = Standard.of([maps[i] for i in SEEDS if i not in HELD_OUT])
    scenes = [
        FeatureScene(standard(each), read_scenes.truth(seed), read_scenes.truth(seed, 4))
        for seed, each in zip(SEEDS, maps, strict=True)
    ]
    training = [scene for seed, scene in zip(SEEDS, scenes, strict=True) if seed not in HELD_OUT]
    head, linear = train_head(training, settings, CPU), train_depth_head(training, settings, CPU)
    found = []
    for seed in HELD_OUT:
        depth, true = predicted_depth(linear, scenes[seed], CPU)
        found.append({**judge_head(head, scenes[seed], settings, CPU), **judge_depth(depth, true)})
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}, found


@pytest.fixture(scope="module")
def scores() -> dict[str, Scores]:
    kinds = {
        "answers": [read_scenes.answers(seed) for seed in SEEDS],
        "noise": [read_scenes.noise(seed) for seed in SEEDS],
        "positions": [position_only(read_scenes.VIEWS, read_scenes.GRID) for _ in SEEDS],
    }
    return {name: read(maps)[0] for name, maps in kinds.items()}


@pytest.mark.long
def test_answers_are_read_out_on_scenes_not_seen_before(scores: dict[str, Scores]) -> None:
    found, none = scores["answers"], scores["positions"]
    assert found["points"] < 0.12
    assert found["points"] < 0.35 * none["points"]
    assert found["depth"] < 0.05
    assert found["depth"] < 0.35 * none["depth"]
    assert found["auc@30"] > 0.3 > none["auc@30"]
    assert found["d1"] > none["d1"]
    assert found["rmse"] < 0.85 * none["rmse"]
    assert found["rmse fitted"] < 0.85 * none["rmse fitted"]


@pytest.mark.long
def test_noise_is_no_better_than_positions(scores: dict[str, Scores]) -> None:
    found, none = scores["noise"], scores["positions"]
    assert found["points"] > 0.95 * none["points"]
    assert found["depth"] > 0.95 * none["depth"]
    assert found["d1"] < none["d1"] + 0.02


def test_a_run_is_the_same_again() -> None:
    maps = [read_scenes.answers(seed) for seed in SEEDS]
    short = TrainingSettings(steps=3, depth_steps=3)
    torch.manual_seed(1)
    first = read(maps, short)[1]
    torch.manual_seed(2)
    assert read(maps, short)[1] == first
    assert read(maps, TrainingSettings(steps=3, depth_steps=3, seed=1))[1] != first


def test_channels_of_any_scale_are_brought_to_one() -> None:
    maps = [read_scenes.noise(seed) for seed in range(3)]
    factors = 10.0 ** torch.arange(-7, 8)[:, None, None]
    scaled = [each * factors + factors * 3 for each in maps]
    standard = Standard.of(scaled)
    found = torch.stack([standard(each) for each in scaled]).transpose(1, 2).flatten(2)
    assert torch.allclose(found.mean(dim=(0, 2)), torch.zeros(15), atol=1e-3)
    assert torch.allclose(found.transpose(0, 1).flatten(1).std(dim=1), torch.ones(15), atol=2e-2)


def test_a_channel_that_never_changes_is_not_blown_up() -> None:
    still = [torch.full((2, 1, 2, 2), 200.0) + 1e-6 * torch.rand(2, 1, 2, 2) for _ in range(3)]
    assert float(Standard.of(still)(still[0]).abs().max()) < 1e-3


def test_schedules() -> None:
    assert half_cosine(0, 100, 10, 1e-3) == pytest.approx(0.1)
    assert half_cosine(10, 100, 10, 1e-3) == pytest.approx(1)
    assert half_cosine(100, 100, 10, 1e-3) == pytest.approx(1e-3)
    assert warmup_cosine(0, 100, 15) == pytest.approx(0.01)
    assert warmup_cosine(100, 100, 15) == pytest.approx(0.01)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    broken = read_scenes.answers(0)
    broken[0, 0, 0, 0] = float("nan")
    scene = FeatureScene(broken, read_scenes.truth(0), read_scenes.truth(0, 4))
    with pytest.raises(AnalysisError, match="NaN or infinite"):
        train_head([scene], TrainingSettings(steps=5), CPU)
    with pytest.raises(AnalysisError, match="NaN or infinite"):
        train_depth_head([scene], TrainingSettings(depth_steps=5), CPU)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(AnalysisError, match="steps above 0, got 0"):
        TrainingSettings(steps=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        TrainingSettings(size="smal")  # type: ignore[arg-type]
