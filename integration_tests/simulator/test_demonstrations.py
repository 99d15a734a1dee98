"""Demonstrations of a scripted policy, through OpenVLA-OFT's own code: replayed, trained on, and acted upon."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scripts import said
from test_run_hosts import action_tokenizer

from simulator import policy
from simulator.demonstrations import write_hdf5
from simulator.tasks import needs_libero

pytestmark = needs_libero


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hdf5(tmp_path_factory.mktemp("raw"), "libero_spatial", 0, range(1))


def test_the_task_is_solved_and_laid_out_as_liberos_files(raw: Path) -> None:
    import h5py

    with h5py.File(raw) as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 1
        demo = data["demo_0"]
        count = demo.attrs["num_samples"]
        assert 60 < count < 260
        assert demo["actions"].shape == (count, 7)
        assert np.abs(demo["actions"]).max() <= 1
        assert demo["states"].shape == (count, 92)
        assert demo["obs/agentview_rgb"].shape == demo["obs/eye_in_hand_rgb"].shape == (count, 128, 128, 3)
        assert demo["obs/agentview_rgb"].dtype == np.uint8
        assert demo["obs/ee_states"].shape == (count, 6)
        assert list(demo["dones"]) == [0] * (count - 1) + [1]


@pytest.fixture(scope="module")
def replayed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What OFT's own script makes of it, and what that said."""
    folder = tmp_path_factory.mktemp("replayed") / "no_noops"
    text = policy.run_in_checkout(
        policy.HERE / "host_scripts" / "libero_replay.py", 0, "--libero_task_suite", "libero_spatial",
        "--libero_raw_data_dir", raw.parent, "--libero_target_dir", folder,
    )  # fmt: skip
    return folder / raw.name, text


def test_ofts_own_script_replays_it_and_keeps_the_success(raw: Path, replayed: tuple[Path, str]) -> None:
    import h5py

    path, text = replayed
    assert "Total # episodes replayed: 1, Total # successes: 1 (100.0 %)" in text
    with h5py.File(path) as file, h5py.File(raw) as before:
        again, first = file["data/demo_0"], before["data/demo_0"]
        assert again["obs/agentview_rgb"].shape[1:] == (256, 256, 3)
        assert 0 < len(again["actions"]) <= len(first["actions"])
        # The same arm, on the same way.
        assert np.abs(again["obs/ee_pos"][-1] - first["obs/ee_pos"][-1]).max() < 0.02


@pytest.fixture(scope="module")
def trained(replayed: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Recipe, checkpoint and what was said: OFT's own training on these demonstrations, through its RLDS pipeline."""
    folder = tmp_path_factory.mktemp("trained")
    policy.run_in_checkout("-m", "simulator.rlds", folder / "rlds", replayed[0])
    recipe = policy.write_recipe(folder / "recipe.yaml")
    base = policy.write_base(folder / "openvla-tiny", action_tokenizer())
    text = policy.finetune(recipe, base, folder / "rlds", folder / "runs")
    return recipe, folder / "runs" / "tiny--4_chkpt", said(text)


def test_ofts_own_training_reads_them(trained: tuple[Path, Path, list[str]], replayed: tuple[Path, str]) -> None:
    import h5py

    _, checkpoint, lines = trained
    assert any("AdamW: the branch of OpenVLAForActionPrediction is in the groups" in line for line in lines)
    branch = load_file(checkpoint / "vega3d.safetensors")
    assert bool(branch["fuser.residual_scale"].abs() > 0)
    # Limits of actions, which OFT's pipeline computed from the data set.
    statistics = json.loads((checkpoint / "dataset_statistics.json").read_text())[policy.STATISTICS]
    with h5py.File(replayed[0]) as file:
        actions = file["data/demo_0/actions"][()]
    assert statistics["num_transitions"] == len(actions)
    assert np.allclose(statistics["action"]["max"][:6], actions.max(axis=0)[:6], atol=1e-5)


def test_what_was_trained_acts_in_the_simulator(trained: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    recipe, checkpoint, _ = trained
    options = ("--num_trials_per_task", 1, "--lora_rank", 4, "--env_img_res", 128)
    log, text = policy.evaluate(recipe, checkpoint, tmp_path / "logs", 10, 0, *options)
    assert "Episode error" not in log
    assert "Total episodes: 1" in log
    assert f"OpenVLAForActionPrediction from {checkpoint} has the branch of {checkpoint}" in said(text)
