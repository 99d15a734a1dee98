"""What would fail at a later step is told before the first: too few frames, features that are not there, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vega3d
from vega3d_plugin.contracts.errors import BadRowsError, FramesError, TrainError, Vega3dWarning
from vega3d_plugin.recipes.library import read_recipe
from vega3d_plugin.training import job as jobs
from vega3d_plugin.training.job import make_job
from vega3d_plugin.training.preflight import check_memory, check_prior_fits, free_memory, single_frames
from vega3d_plugin.training.rows.conversation import Conversation, Medium, Turn

SMOKE = "qwen_vl/smoke"
GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """A row with an image, one with four views as a video, and one with two images."""
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (56, 56, 3), np.uint8)).save(tmp_path / f"{number}.png")

    def row(text: str, **media: Any) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}], **media}

    made = [
        row("<image>\nA box?", image="0.png"),
        row("<video>\nA box?", video=[f"{number}.png" for number in range(4)]),
        row("<image><image>\nThe same?", images=["1.png", "2.png"]),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(made))
    return [
        f"data={{files: {tmp_path}/rows.json, frames: 4}}",
        f"train.output_dir={tmp_path}/run",
        "train.report_rows=0",
    ]


def conversation(*media: Medium) -> Conversation:
    return Conversation((Turn("user", (*media, "?")), Turn("assistant", ("Yes.",))))


def test_rows_with_one_frame_are_told_before_the_model_is_loaded(rows: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(jobs, "prepare", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(BadRowsError) as caught:
        make_job(SMOKE, [*rows, "images=separate", "prior.context=video"])
    message = str(caught.value)
    assert message.startswith("2 of 3 rows")
    for part in (
        "rows.json, row 1",
        "rows.json, row 3",
        "'tiny-wan' with context 'video' needs 2",
        "prior.context=frame",
    ):
        assert part in message
    with pytest.raises(BadRowsError, match=r"rows\.json, row 1") as caught:
        make_job(SMOKE, [*rows, "images=scene", "prior.context=video"])
    assert "row 3" not in str(caught.value), "its two images are one clip"


def test_what_is_refused_is_what_the_prior_refuses() -> None:
    prior = vega3d.load_prior("tiny-wan", context="video", size=(48, 80))
    with pytest.raises(FramesError, match="context 'video' needs a video"):
        prior(torch.rand(1, 3, 48, 80))
    prior(torch.rand(2, 3, 48, 80))
    image, video = Medium("image", Path("a.png")), Medium("video", Path("a.mp4"))
    views = Medium("video", [Path("a.png"), Path("b.png")])
    for overrides, media, refused in (
        (["prior.context=video"], [video], False),
        (["prior.context=video"], [views], False),
        (["prior.context=video"], [Medium("video", [Path("a.png")])], True),
        (["prior.context=video", "images=separate"], [image], True),
        (["prior.context=video", "data.frames=1"], [video], True),
        (["prior.context=video", "data.video_as=images", "images=separate"], [video], True),
        (["prior.context=video", "data.video_as=images", "images=scene"], [video], False),
        (["prior.context=video", "images=scene"], [image], True),
        (["prior.context=video"], [], False),
    ):
        refuse = single_frames(read_recipe(SMOKE, ["data={files: rows.json, frames: 4}", *overrides]))
        assert refuse is not None
        assert bool(refuse(conversation(*media))) == refused, (overrides, media)
    for other in (["prior.context=frame"], ["prior.context=views"], ["prior=null"]):
        assert single_frames(read_recipe(SMOKE, other)) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_clip_without_features_is_listed(rows: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    save_file({"features": torch.zeros(1, 6, 4, 4)}, folder / f"{'0' * 32}.safetensors")
    external = [f"prior={{name: external, pretrained: {folder}}}", "images=separate", "train.max_steps=2"]
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "prepare", lambda *_: pytest.fail("the model was loaded"))
        with pytest.raises(TrainError, match="has no features of 4 clips of these rows") as caught:
            make_job(SMOKE, [*rows, *external])
    listed = (tmp_path / "run_missing_clips.txt").read_text().splitlines()
    assert "run_missing_clips.txt" in str(caught.value)
    assert [line.split("  ")[1].split(",")[1] for line in listed] == [" row 1", " row 2", " row 3", " row 3"]
    # With these files, and no other, training finds what it looks for.
    for line in listed:
        save_file({"features": torch.rand(1, 6, 4, 4)}, folder / f"{line.split()[0]}.safetensors")
    make_job(SMOKE, [*rows, *external]).run()
    next(folder.glob(f"{listed[1].split()[0]}*")).unlink()
    with pytest.raises(TrainError, match=r"no features of 1 clip of these rows:\n  \w{32}  .*row 2"):
        make_job(SMOKE, [*rows, *external, f"train.output_dir={tmp_path}/again"])


def test_a_prior_that_is_larger_than_the_machine() -> None:
    recipe = read_recipe(SMOKE, ["prior={name: wan2.1-t2v-14b}"])
    with pytest.warns(Vega3dWarning, match=r"'wan2\.1-t2v-14b' has about .* billion parameters, which take .* GiB"):
        check_prior_fits(recipe, 8 * GIB)
    check_prior_fits(recipe, 100 * GIB)
    check_prior_fits(recipe, None)
    check_prior_fits(read_recipe(SMOKE), 1)


def test_a_plan_that_does_not_fit() -> None:
    recipe = read_recipe(SMOKE)
    memory = {
        "weights": 6 * GIB,
        "gradients": GIB,
        "optimiser": 2 * GIB,
        "prior": 3 * GIB,
        "activations (rough)": 5 * GIB,
    }
    check_memory(memory, recipe, CUDA, 17 * GIB)
    check_memory(memory, recipe, CUDA, None)
    with pytest.warns(Vega3dWarning, match=r"takes 17\.0 GiB on cuda:0 .*prior 3\.0 GiB.* and 16\.0 GiB are free"):
        check_memory(memory, recipe, CUDA, 16 * GIB)
    with pytest.raises(TrainError, match=r"11\.0 GiB are free there\. Lower it with prior\.offload=true"):
        check_memory(memory, recipe, CUDA, 11 * GIB)
    # A prior on a device of its own takes no memory here; what the CPU holds already is not asked for again.
    apart = read_recipe(SMOKE, ["prior.device=cpu"])
    check_memory(memory, apart, CUDA, 14 * GIB)
    check_memory(memory, recipe, CPU, 8 * GIB)
    with pytest.warns(Vega3dWarning, match=r"takes 8\.0 GiB on cpu"):
        check_memory(memory, recipe, CPU, GIB)


def test_the_machine_tells_its_memory() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert free > 0
    assert free_memory(torch.device("meta")) is None
