"""``vega3d.analysis.readout``: split, controls, records, files, and what it refuses."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import read_scenes
import torch
from PIL import Image

import vega3d
from vega3d_plugin.analysis.readouts import ReadoutResult, TrainingSettings, readout
from vega3d_plugin.analysis.readouts.pictures import decode_depth, decode_frame, depth_maps, encode_depth
from vega3d_plugin.analysis.readouts.results import CONTROLS
from vega3d_plugin.analysis.readouts.sources import capped
from vega3d_plugin.analysis.results import ITSELF
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.errors import AnalysisError, PriorError, SceneError, UnknownNameError
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.warnings import Vega3dWarning

SHORT = TrainingSettings(steps=2, depth_steps=2)
pytestmark = pytest.mark.filterwarnings("ignore::vega3d_plugin.analysis.scoring.AnalysisWarning")
FRAME: dict[str, Any] = {"contexts": ["frame"], "training": SHORT, "views": 6}


def answers(count: int = 6) -> Any:
    return read_scenes.giving(read_scenes.answers, range(count), "answers")


@pytest.fixture(scope="module")
def wan() -> ReadoutResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Vega3dWarning)
        return readout("tiny-wan", read_scenes.rooms(6), **FRAME)


@pytest.fixture(scope="module")
def result(wan: ReadoutResult) -> ReadoutResult:
    with pytest.warns(AnalysisWarning, match="2 scenes are held out"):
        own = readout(answers(), read_scenes.rooms(6), training=SHORT, views=6)
    return own.model_copy(update={"priors": own.priors + wan.priors})


def test_every_control_there_is(result: ReadoutResult) -> None:
    assert [each.label for each in result.priors] == ["callable (views)", "tiny-wan (frame)"]
    wan, own = result.of("tiny-wan", "frame"), result.of("callable")
    assert wan.controls == [ITSELF, *CONTROLS]
    assert set(own.absent) == {"untrained twin", "VAE alone"}
    assert "no untrained twin" in own.absent["untrained twin"]
    assert own.grid == read_scenes.GRID
    assert wan.seen == (96, 160)
    for _, _, figures in result.rows():
        assert set(figures) == set(result.figures)
        assert all(not np.isnan(figure.value) for figure in figures.values())


def test_a_prior_is_read_in_all_its_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [scene.select([0, 1, 2, 3]) for scene in read_scenes.rooms(4)]
    training = TrainingSettings(steps=1, depth_steps=1, batch=1)
    found = readout("tiny-wan", scenes, training=training, views=4, controls=False)
    assert [each.context for each in found.priors] == ["frame", "views", "video"]
    assert len({each.fingerprint for each in found.priors}) == 3
    assert all(each.grid == (6, 10) for each in found.priors)


def test_the_split_is_the_same_for_all_and_by_scene(result: ReadoutResult) -> None:
    splits = [([s.scene for s in each.held_out], [s.scene for s in each.training]) for each in result.priors]
    assert all(split == splits[0] for split in splits)
    held_out, training = splits[0]
    assert len(held_out) == 2
    assert sorted(held_out + training) == sorted(scene.name for scene in read_scenes.rooms(6))


def test_the_result_survives_json(result: ReadoutResult, tmp_path: Path) -> None:
    path = tmp_path / "readout.json"
    path.write_text(result.to_json())
    assert ReadoutResult.read(path) == result
    data = json.loads(path.read_text())
    assert data["kind"] == "readout"
    data["priors"][0]["training"] += data["priors"][0]["held_out"]
    with pytest.raises(AnalysisError, match="both trained on and held out"):
        ReadoutResult.from_json(json.dumps(data))
    with pytest.raises(AnalysisError, match="no ReadoutResult"):
        ReadoutResult.from_json(b"\xff\x00{")


def test_the_table_shows_every_control_and_says_what_may_be_said(result: ReadoutResult) -> None:
    text = result.table()
    for name in (*CONTROLS, *result.figures):
        assert name in text
    assert "trained on 4 scenes, judged on 2 others" in text
    assert "no untrained twin" in text
    # Two held-out scenes are too few for a word like better.
    assert not any("better than" in line for line in result.findings())
    assert any("too few to tell" in line for line in result.findings())
    assert "vega3d ablate" in result.findings()[-1]


def test_findings_say_better_worse_and_open(result: ReadoutResult) -> None:
    prior = result.of("tiny-wan", "frame")

    def scene(index: int) -> Any:
        base = dict.fromkeys(result.figures, 1.0)
        values = {control: {**base, "points": 1.0 + 0.1 * index, "auc@30": 0.5} for control in prior.controls}
        values[ITSELF] = {**base, "points": 0.5 + 0.1 * index, "auc@30": 0.2}
        values["random"] = {**base, "points": 0.5 + 0.1 * index + (-1) ** index, "auc@30": 0.5}
        return prior.held_out[0].model_copy(update={"values": values, "fingerprint": f"{index:064x}"})

    several = prior.model_copy(update={"held_out": tuple(scene(i) for i in range(8))})
    found = result.model_copy(update={"priors": (several,)})
    lines = [line for line in found.findings() if " points " in line]
    assert "better than untrained twin, VAE alone, pixels and position only" in lines[0]
    assert "NOT clearly better than random" in lines[0]
    assert any("auc@30" in line and "WORSE than untrained twin" in line for line in found.findings())


def test_examples_show_what_was_seen_and_read(result: ReadoutResult) -> None:
    prior = result.of("tiny-wan", "frame")
    assert [example.scene for example in prior.examples] == [scene.scene for scene in prior.held_out]
    example = prior.examples[0]
    assert decode_frame(example.frame, "x").size == (160, 96)
    maps = depth_maps(example, [ITSELF, "position only", "nothing of the kind"])
    assert set(maps) == {"true", ITSELF, "position only"}
    scene = next(s for s in read_scenes.rooms(6) if s.name == example.scene)
    depth = next(v for v in scene.views if v.name == example.view).depth()
    assert depth is not None
    assert maps["true"].shape == tuple(example.size)
    assert maps["true"].max() <= float(depth.max()) + 1e-3
    assert np.isin(np.round(maps["true"], 3), np.round(depth.numpy(), 3)).mean() > 0.99
    picture = result.plot()
    assert picture.width > 600
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_a_resumed_run_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**changes: Any) -> ReadoutResult:
        options = {"training": SHORT, "views": 6, "records": tmp_path, "controls": ["position only"], **changes}
        return readout(answers(), read_scenes.rooms(6), **options)

    first = run()
    import vega3d_plugin.analysis.readouts.experiment as experiment

    monkeypatch.setattr(experiment, "train_head", lambda *a: pytest.fail("trained again"))
    assert run() == first
    assert run(controls=[]).priors[0].controls == [ITSELF]
    monkeypatch.undo()
    assert run(training=replace(SHORT, steps=3)) != first
    for file in tmp_path.glob("*.json"):
        file.write_bytes(b'{"key": 1}')
    with pytest.warns(AnalysisWarning, match="computed again"):
        assert run() == first


def test_features_go_through_a_store(tmp_path: Path) -> None:
    wan = vega3d.load_prior("tiny-wan")
    options: dict[str, Any] = {**FRAME, "controls": False}
    first = readout(wan, read_scenes.rooms(4), store=tmp_path, **options)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    calls: list[int] = []
    wan.progress = lambda stage, done, total: calls.append(done)  # type: ignore[attr-defined]
    assert readout(wan, read_scenes.rooms(4), store=tmp_path, **options) == first
    assert not calls


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    readout(
        answers(4),
        read_scenes.rooms(4),
        training=SHORT,
        views=6,
        controls=["pixels"],
        progress=lambda *a: told.append(a),
    )
    assert ("callable (views): features", 4, 4) in told
    assert ("callable (views), pixels: 4 views", 2, 2) in told
    assert ("callable (views), itself: depth", 2, 2) in told


def test_the_full_head_reads_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    import vega3d_plugin.analysis.readouts.heads as heads

    class Narrow(heads.FullReadout):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, 32, 4, 8, (8, 8, 8, 8))

    monkeypatch.setattr(heads, "FullReadout", Narrow)
    found = readout(
        answers(4),
        read_scenes.rooms(4),
        training=TrainingSettings(size="full", steps=1, depth_steps=1, batch=1),
        views=6,
        controls=False,
    )
    assert found.options["size"] == "full"
    assert found.priors[0].figure("points").value > 0


def test_large_maps_are_averaged_down() -> None:
    maps = torch.arange(2 * 30 * 52, dtype=torch.float32).view(1, 2, 30, 52)
    assert capped(maps, 400).shape == (1, 2, 15, 26)
    assert float(capped(maps, 400)[0, 0, 0, 0]) == pytest.approx((0 + 1 + 52 + 53) / 4)
    assert capped(maps, None) is maps
    assert capped(maps, 10).shape[2] * capped(maps, 10).shape[3] <= 10


# What it refuses


def call(scenes: Any = None, prior: Any = None, **changes: Any) -> ReadoutResult:
    options: dict[str, Any] = {"training": SHORT, "views": 6, "controls": False, **changes}
    return readout(prior or answers(), scenes or read_scenes.rooms(6), **options)


def test_too_few_scenes() -> None:
    with pytest.raises(AnalysisError, match="at least 4 scenes, found 3"):
        call(read_scenes.rooms(3))
    with pytest.raises(AnalysisError, match="at least 4 scenes, found 1"):
        call(read_scenes.room(0))


def test_one_scene_twice() -> None:
    with pytest.raises(AnalysisError, match="same content"):
        call([*read_scenes.rooms(4), read_scenes.room(2)])


def test_too_few_views() -> None:
    with pytest.raises(AnalysisError, match="3 views would be shown"):
        call(views=3)
    with pytest.raises(AnalysisError, match="2 views would be shown"):
        call([*read_scenes.rooms(4), read_scenes.room(5).select([0, 1])])


def test_a_scene_without_depth_or_poses() -> None:
    blind = Scene.from_arrays(read_scenes.room(0).frames(), name="blind")
    with pytest.raises(SceneError, match=r"'blind'.*lacks depth"):
        call([*read_scenes.rooms(4), blind])


def test_a_scene_whose_depth_is_mostly_missing() -> None:
    source = read_scenes.room(5)
    depth = torch.zeros(6, *read_scenes.SIZE)
    depth[:2] = 2
    holes = Scene.from_arrays(source.frames(), depth, source.views[0].intrinsics, source.poses, name="holes")
    with pytest.raises(AnalysisError, match=r"'holes'.*2 of its 6 views have depth"):
        call([*read_scenes.rooms(4), holes], check=False)


def test_depth_in_another_unit() -> None:
    source = read_scenes.room(5)
    depth = torch.stack([view.depth() for view in source.views]) * 1e-4  # type: ignore[operator]
    tiny = Scene.from_arrays(source.frames(), depth, source.views[0].intrinsics, source.poses, name="tiny")
    with pytest.raises(AnalysisError, match="unit of the depth"):
        call([*read_scenes.rooms(4), tiny], training=replace(SHORT, steps=40), check=False)
    with pytest.raises(SceneError, match="divided by 1000"):
        call([*read_scenes.rooms(4), tiny])


def test_scenes_without_metres_have_no_linear_head() -> None:
    scenes = [*read_scenes.rooms(5), replace(read_scenes.room(5), metric=False)]
    found = call(scenes)
    assert found.priors[0].figure("points").value > 0
    assert np.isnan(found.priors[0].figure("d1").value)
    assert "room_0005" in found.findings()[0]
    assert "up to their scale only" in found.table()
    assert not found.priors[0].examples
    assert found.plot().height < call().plot().height


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pixels'"):
        call(controls=["pixel"])
    with pytest.raises(UnknownNameError, match="small"):
        call(training=None, size="smal")
    with pytest.raises(PriorError, match="no context 'vedio'"):
        call(prior="tiny-wan", contexts=["vedio"])
    with pytest.raises(AnalysisError, match="There is no prior"):
        readout([], read_scenes.rooms(4), training=SHORT, views=6)


def test_features_that_are_not_finite() -> None:
    def broken(seed: int) -> torch.Tensor:
        return read_scenes.answers(seed).index_fill(0, torch.tensor([1]), float("inf"))

    with pytest.raises(AnalysisError, match="NaN or infinite"):
        call(prior=read_scenes.giving(broken, range(6), "broken"))


@pytest.mark.parametrize("text", ["", "####", "aGVsbG8=", encode_depth(torch.ones(3, 4))])
def test_damaged_pictures_in_a_file(text: str) -> None:
    with pytest.raises(AnalysisError, match="Depth of x"):
        decode_depth(text, (4, 3), "Depth of x")
    with pytest.raises(AnalysisError, match="Frame of x"):
        decode_frame(text, "Frame of x")


def test_a_picture_that_would_fill_the_memory(tmp_path: Path) -> None:
    import base64

    Image.new("1", (20_000, 3_000)).save(tmp_path / "large.png")
    text = base64.b64encode((tmp_path / "large.png").read_bytes()).decode()
    with pytest.raises(AnalysisError, match="20000x3000"):
        decode_depth(text, (3000, 20000), "Depth of x")
