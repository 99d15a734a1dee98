"""A stereo pair: its geometry is that of its calibration, and the pictures agree with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scene_layouts as layouts
import torch

from vega3d_plugin.errors import SceneError
from vega3d_plugin.scenes.consistency import check_geometry
from vega3d_plugin.scenes.coordinates import point_map, visible
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.readers import stereo

SIZE = (24, 32)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)


def plane(disparity: float, near: float) -> tuple[np.ndarray, np.ndarray]:
    """A wall with a plate before it, seen from the left and from the right."""
    left, right = np.full(SIZE, disparity), np.full(SIZE, disparity)
    left[5:15, 18:26] = near
    right[5:15, 18 - int(near) : 26 - int(near)] = near
    return left, right


def test_depth_is_focal_length_times_baseline_over_disparity(tmp_path: Path) -> None:
    left, right = plane(2.0, 7.0)
    scene = open_scene(layouts.write_middlebury(tmp_path / "pair", left, pictures(), right))
    assert [view.name for view in scene.views] == ["left", "right"]
    depth = scene.views[0].depth()
    # Focal length 50 pixels, 0.2 m apart, principal points 3 pixels apart.
    assert float(depth[0, 0]) == pytest.approx(50 * 0.2 / (2 + 3))
    assert float(depth[10, 20]) == pytest.approx(50 * 0.2 / (7 + 3))
    assert scene.views[1].intrinsics[0, 2] - scene.views[0].intrinsics[0, 2] == 3
    assert scene.views[1].pose[0, 3] == pytest.approx(0.2)
    assert torch.equal(scene.views[1].depth(), torch.from_numpy((10 / (right + 3)).astype(np.float32)))


def test_points_of_the_left_land_where_the_disparity_says(tmp_path: Path) -> None:
    left, right = plane(2.0, 7.0)
    scene = open_scene(layouts.write_middlebury(tmp_path / "pair", left, pictures(), right))
    seen, pixels = visible(point_map(scene.views[0]).points, scene.views[1], tolerance=0.01)
    u = torch.arange(SIZE[1]).expand(SIZE)
    assert torch.allclose(pixels[..., 0][seen], (u - torch.from_numpy(left))[seen].float(), atol=1e-4)
    # Left of the plate the right view sees the plate instead of the wall.
    assert not seen[10, 13:18].any()
    assert seen[10, 18:26].all()


def test_depth_of_the_right_is_that_of_the_left_moved_over(tmp_path: Path) -> None:
    left, right = plane(2.0, 7.0)
    left[0, 0] = np.nan
    scene = open_scene(layouts.write_middlebury(tmp_path / "pair", left, pictures()))
    moved = scene.views[1].depth().numpy()
    expected = (10 / (right + 3)).astype(np.float32)
    known = moved > 0
    # What the plate uncovers on its right, and what enters at the right edge, nobody has seen.
    assert 0.75 < known.mean() < 1
    assert np.allclose(moved[known], expected[known])
    assert scene.views[0].depth()[0, 0] == 0
    assert check_geometry(scene).share > 0.9


def test_what_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    folder = layouts.write_middlebury(tmp_path / "pair", plane(2.0, 7.0)[0], pictures())
    text = (folder / "calib.txt").read_text()
    for change, message in (
        (("doffs=3", ""), r"calib\.txt: the line doffs=\.\.\. is missing"),
        (("baseline=200", "baseline=-1"), "baseline -1 cannot be"),
        (("50 0 15.5", "50 15.5"), "cam0 has 9 numbers"),
        (("50 0 15.5", "fifty 0 15.5"), r"cam0: 'fifty' is no number"),
    ):
        (folder / "calib.txt").write_text(text.replace(*change))
        with pytest.raises(SceneError, match=message):
            open_scene(folder)
    (folder / "calib.txt").write_text(text)
    (folder / "disp0.pfm").unlink()
    with pytest.raises(SceneError, match=r"disp0\.pfm does not exist"):
        open_scene(folder)


def test_the_shipped_pair_is_a_test_of_everything_on_real_pictures() -> None:
    """Where depth says that two pixels show one point, the two real pictures have one colour."""
    if importlib.util.find_spec("skimage") is None:
        pytest.skip("scikit-image, which ships the pair, is not installed")
    scene = open_scene("stereo:motorcycle")
    assert scene.frames().shape == (2, 3, 500, 741)
    depth = scene.views[0].depth()
    assert 2 < float(depth[depth > 0].median()) < 4
    assert check_geometry(scene).share > 0.9
    seen, pixels = visible(point_map(scene.views[0]).points, scene.views[1])
    seen &= depth > 0
    u, v = pixels[seen].round().long().T
    left, right = scene.frames()
    there = right[:, v.clamp(0, 499), u.clamp(0, 740)]
    same_place = right[:, seen]
    assert float((left[:, seen] - there).abs().mean()) < 0.03
    assert float((left[:, seen] - same_place).abs().mean()) > 0.1


def test_without_its_package_the_pair_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stereo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SceneError, match=r"comes with scikit-image, which is not installed.*pip install scikit-image"):
        open_scene("stereo:motorcycle")
