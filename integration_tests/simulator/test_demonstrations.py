"""Demonstrations of a scripted policy: LIBERO's own layout, replayed by OpenVLA-OFT's own script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


def test_ofts_own_script_replays_it_and_keeps_the_success(raw: Path, tmp_path: Path) -> None:
    import h5py

    said = policy.run_in_checkout(
        policy.HERE / "host_scripts" / "libero_replay.py", 0, "--libero_task_suite", "libero_spatial",
        "--libero_raw_data_dir", raw.parent, "--libero_target_dir", tmp_path / "no_noops",
    )  # fmt: skip
    assert "Total # episodes replayed: 1, Total # successes: 1 (100.0 %)" in said
    with h5py.File(tmp_path / "no_noops" / raw.name) as file, h5py.File(raw) as before:
        again, first = file["data/demo_0"], before["data/demo_0"]
        assert again["obs/agentview_rgb"].shape[1:] == (256, 256, 3)
        assert 0 < len(again["actions"]) <= len(first["actions"])
        # The same arm, on the same way.
        assert np.abs(again["obs/ee_pos"][-1] - first["obs/ee_pos"][-1]).max() < 0.02
