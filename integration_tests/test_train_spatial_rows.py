"""``vega3d train`` on one row of SPAR and one folder of frames: what host and prior see of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vega3d_plugin.contracts.errors import Vega3dWarning
from vega3d_plugin.training.job import make_job

SPAR = {
    "images": ["a.png", "b.png"],
    "spar_info": json.dumps(
        {
            "type": "depth_prediction_oc_mv", "red_point": [[250, 500]], "blue_point": [[750, 500]],
            "point_img_idx": [[1, 0]],
        }
    ),
    "conversations": [
        {"from": "human", "value": "<image>\n<image>\nHow much deeper is the shelf (blue point) than the stool (red)?"},
        {"from": "gpt", "value": "0.7"},
    ],
    "gt_bbox": [],
}  # fmt: skip
FOLDER = {
    "video": "frames",
    "conversations": [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A dog."}],
    "gt_bbox": [],
}
FRAMES = 10
#: As the released settings, and every setting of theirs but their order and rounding.
SETTINGS = {
    "released": {"preset": "released"},
    "by number": {
        "preset": None, "video_as": "images", "resize": "width_518", "sampling": "fps", "fps": 0.5, "min_frames": 4,
        "frames": 8, "folder_fps": 1.0,
    },
}  # fmt: skip
SEEN: list[Tensor] = []


def keep(frames: Tensor) -> Tensor:
    """A prior that keeps what it is shown."""
    SEEN.append(frames)
    return torch.nn.functional.adaptive_avg_pool2d(frames, (4, 6))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Grey pictures of 640x480; frame ``i`` of the folder is of the grey ``10 * i``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    (tmp_path / "frames").mkdir()
    names = {"a.png": 128, "b.png": 128, **{f"frames/{i}.png": 10 * i for i in range(1, FRAMES + 1)}}
    for name, grey in names.items():
        Image.fromarray(np.full((480, 640, 3), grey, np.uint8)).save(tmp_path / name)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([SPAR, FOLDER]))
    SEEN.clear()
    yield path
    SEEN.clear()


def colour(picture: Tensor, x: float, y: float) -> list[int]:
    """Of ``[3, H, W]`` at a place in parts of width and height."""
    _, height, width = picture.shape
    return [round(float(v) * 255) for v in picture[:, int(y * height), int(x * width)]]


@pytest.mark.parametrize("name", SETTINGS)
def test_marks_order_frames_and_size_reach_the_host(name: str, rows: Path) -> None:
    prior = {"name": "callable", "options": {"target": f"{__name__}:keep", "feature_dim": 3, "trust": True}}
    overrides = [
        f"prior={json.dumps(prior)}", f"data={json.dumps({'files': [str(rows)], **SETTINGS[name]})}",
        "host.max_pixels=50176", "train.max_steps=1", "train.batch_size=2", "train.per_device_batch_size=2",
        "train.output_dir=out",
    ]  # fmt: skip
    with pytest.warns(Vega3dWarning) as told:
        job = make_job("qwen_vl/smoke", overrides)
    # Told again, it would be an error here.
    job.run()
    unknown = [str(warning.message) for warning in told if "no effect" in str(warning.message)]
    assert len(unknown) == 1
    assert "'gt_bbox' in 2 of 2 rows" in unknown[0]
    # Once in training, and again for the run's report.
    pictures = list({picture.numpy().tobytes(): picture for clip in SEEN for picture in clip}.values())
    # 518 wide, then cut to whole tokens: 640x480 becomes 504x392, and within the host's bounds half of that each way.
    # Without the rule it would be 252x168.
    assert {tuple(picture.shape) for picture in pictures} == {(3, 196, 252)}
    centres = [colour(picture, 0.5, 0.5)[0] for picture in pictures]
    first, second = (picture for picture, grey in zip(pictures, centres, strict=True) if grey == 128)
    # Places are of the whole picture: its cut keeps 504 of 518 columns.
    assert colour(first, 0.75 * 518 / 504, 0.5) == [0, 0, 255]
    assert colour(first, 0.25 * 518 / 504, 0.5) == [128, 128, 128]
    assert colour(second, 0.25 * 518 / 504, 0.5) == [255, 0, 0]
    # One frame a second, one in two of them taken: 5 of 10.
    frames = [grey // 10 for grey in centres if grey != 128]
    assert frames == ([1, 2, 4, 6, 9] if name == "released" else [1, 3, 5, 8, 10])
