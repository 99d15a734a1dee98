"""The comparison of trained networks with their twins: a plane's geometry, rows as units, and what a table may say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sight import tables
from sight.judging import read, readouts
from sight.networks import CANDIDATES
from sight.pictures import PictureSet, in_memory, plane_motion
from sight.rows import VisibleByRows

import vega3d
from vega3d_plugin.analysis.intervals import Interval
from vega3d_plugin.analysis.protocols import Visible
from vega3d_plugin.scenes.scene import Scene


def test_a_homography_becomes_two_cameras_and_a_plane() -> None:
    angle = 0.4
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    translation, normal = np.array([-0.5, 0.1, 0.05]), np.array([0.1, -0.05, 1.0])
    found = plane_motion(3.7 * (rotation + np.outer(translation, normal)))
    again = found[0] + np.outer(found[1], found[2])
    np.testing.assert_allclose(found[0] @ found[0].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(again, rotation + np.outer(translation, normal), atol=1e-9)
    np.testing.assert_allclose(found[0], rotation, atol=1e-9)


def test_rows_of_one_pair_are_units() -> None:
    """Their sum is the pair, and each is judged by itself."""
    torch.manual_seed(0)
    frames = torch.rand(1, 3, 32, 48).repeat(2, 1, 1, 1)
    intrinsics = torch.tensor([[40.0, 0, 23.5], [0, 40.0, 15.5], [0, 0, 1]], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    scene = Scene.from_arrays(frames, torch.full((2, 32, 48), 2.0), intrinsics, poses)
    prior = vega3d.CallablePrior(lambda f: torch.nn.functional.avg_pool2d(f, 8), 3, fingerprint="mean colours")
    whole, rows = (kind().pairs(scene, prior, (4, 6)) for kind in (Visible, VisibleByRows))
    assert rows.shared == [12] * 4
    assert sum(rows.shared) == whole.shared[0]
    features = prior(frames)
    features[1, :, 2] = torch.rand(3, 6)
    recall = VisibleByRows(within=(0.1,)).measure(rows, features)["recall@0.1"]
    assert recall[0] == recall[1] == recall[3] == 1
    assert recall[2] < 1


@pytest.mark.parametrize(
    ("found", "higher", "said"),
    [
        (Interval(0.1, 0.05, 0.2, 20), True, "better"),
        (Interval(0.1, 0.05, 0.2, 20), False, "worse"),
        (Interval(0.1, -0.05, 0.2, 20), True, "no difference shown"),
        (Interval(0.1, 0.05, 0.2, 4), True, "no verdict: 4 units"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(found: Interval, higher: bool, said: str) -> None:
    assert tables.verdict(found, higher) == said


def test_no_figure_without_its_twins_and_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def units(level: float) -> dict[str, list[float]]:
        return {figure: (level + 0.1 * rng.random(20)).round(4).tolist() for figure in ("recall@1", "centred")}

    about = {"set": "graf", "what": "painted wall", "candidate": "RIFE", "kind": "synthesises frames", "tokens": 9}
    controls = {name: units(0.1) for name in tables.CONTROLS}
    found = {**about, "units": "rows of tokens", "trained": units(0.6), "twins": [units(0.2)] * 3, "controls": controls}
    (tmp_path / "correspondence-graf-RIFE.json").write_text(json.dumps(found))
    lines = list(tables.write(tmp_path, tmp_path))
    (line,) = (line for line in lines if line.startswith("| RIFE"))
    assert line.count(" to ") == 3
    assert line.endswith("| better |")
    assert json.loads((tmp_path / "sight.json").read_text())["correspondence"] == [found]
    assert (tmp_path / "sight.png").stat().st_size > 1000


def test_read_outs_have_twins_controls_and_the_right_direction(tmp_path: Path) -> None:
    """``points`` is an error: less of it is better."""
    rng = np.random.default_rng(0)

    def units(level: float) -> dict[str, list[float]]:
        return {figure: (level + 0.1 * rng.random(8)).round(4).tolist() for figure in tables.READ}

    about = {"set": "rooms", "what": "8 rendered rooms", "candidate": "RIFE", "kind": "synthesises frames"}
    controls = {"pixels": units(0.8), "position only": units(0.9)}
    found = {**about, "trained": units(0.2), "twins": [units(0.6)] * 3, "controls": controls}
    (tmp_path / "readout-rooms-RIFE.json").write_text(json.dumps(found))
    lines = list(tables._readouts(read(tmp_path, "readout")))
    assert [line.endswith("| better |") for line in lines if line.startswith("| RIFE")] == [True, False, False]
    assert sum(line.startswith("| position only |") for line in lines) == len(tables.READ)


def test_what_is_there_is_not_judged_again(tmp_path: Path) -> None:
    for name in CANDIDATES:
        (tmp_path / f"readout-rooms-{name}.json").write_text("{}")
    readouts(PictureSet("rooms", "", (32, 32), lambda: pytest.fail("opened"), real=False), tmp_path, print)


def test_rows_that_are_cut_off_leave_the_geometry_as_it_was() -> None:
    """A point projects to the same place of the same pixels."""
    intrinsics = torch.tensor([[40.0, 0, 23.5], [0, 40.0, 15.5], [0, 0, 1]], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    whole = Scene.from_arrays(torch.rand(2, 3, 32, 48), torch.rand(2, 32, 48) + 1, intrinsics, poses)
    part = in_memory(whole, 4)
    assert part.views[0].size == (24, 48)
    assert torch.equal(part.views[1].frame(), whole.views[1].frame()[:, 4:28])
    ray = torch.linalg.inv(part.views[0].intrinsics) @ torch.tensor([3.0, 5.0, 1.0], dtype=torch.float64)
    same = torch.linalg.inv(whole.views[0].intrinsics) @ torch.tensor([3.0, 9.0, 1.0], dtype=torch.float64)
    assert torch.allclose(ray, same)
