"""``vega3d run`` around a policy: an episode's start empties the history, and each episode becomes a video."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import openvla as double
from scripts import run_script, scripts_own, write_recipe
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.scenes.video import read_video
from vega3d_plugin.training.scripts import RunError, Start
from vega3d_plugin.training.scripts.episodes import KNOWN
from vega3d_plugin.training.scripts.importing import after_import

HERE = Path(__file__).parent
POLICY = """
import sys, torch
from doubles.openvla import OFTForActionPrediction
from rows.openvla import batch_of, pictures
model = OFTForActionPrediction.from_pretrained(sys.argv[1]).eval()
model.vision_backbone.set_num_images_in_input(2)
# Only now, as scripts do it.
from its_simulator import World
world = World()
for episode in range(2):
    world.reset(seed=episode)
    for step in range(4):
        with torch.no_grad():
            model.predict_action(**batch_of(pictures(images=2, seed=step)))
"""
SIMULATOR = """
class World:
    seeds = []
    def reset(self, seed): self.seeds.append(seed)
class Other(World): pass
"""
START = Start("its_simulator", "World", "reset")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "base"
    double.double_model(double.OFTForActionPrediction).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return acting(tmp_path / "recipe.yaml")


def acting(path: Path, **others: Any) -> Path:
    prior = {"name": "tiny-wan", "context": "views", "tap": 2, "size": [64, 64], "resize": "stretch"}
    host = {"adapter": "openvla", "model": "tiny", "dtype": "float32"}
    fusion = {"name": "token_gated_residual", "init": "released"}
    return write_recipe(
        path, **{"host": host, "prior": prior, "fusion": fusion, "history": 3, "images": "scene", **others}
    )


@pytest.fixture
def act(
    recipe: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[str]]]:
    """Run the policy, with a simulator of its own; what was said."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "its_simulator.py").write_text(SIMULATOR)
    (tmp_path / "policy.py").write_text(POLICY)

    def call(*, after: str = "", recipe: Path = recipe, **options: Any) -> list[str]:
        (tmp_path / "policy.py").write_text(POLICY + after)
        return run_script(recipe, tmp_path / "policy.py", base, **options)

    with scripts_own():
        yield call
    sys.modules.pop("its_simulator", None)


def earlier(folder: Path) -> list[list[int]]:
    """For each episode and observation, how many earlier frames the prior saw."""
    files = sorted(folder.glob("*.json"))
    return [[sum(row["earlier_frames"]) for row in json.loads(file.read_text())["observations"]] for file in files]


def test_an_episode_begins_with_an_empty_history_and_is_a_video(act: Callable[..., list[str]], tmp_path: Path) -> None:
    lines = act(record=tmp_path / "videos", starts=[START])
    assert any("an episode begins at each call of its_simulator:World.reset" in line for line in lines)
    assert any(f"2 episodes recorded in {tmp_path / 'videos'}" in line for line in lines)
    # Two cameras: with history 3, up to four earlier frames.
    assert earlier(tmp_path / "videos") == [[0, 2, 4, 4]] * 2
    videos = sorted((tmp_path / "videos").glob("*.mp4"))
    assert [len(read_video(video)) for video in videos] == [4, 4]
    row = json.loads(videos[0].with_suffix(".json").read_text())["observations"][3]
    assert row["views"] == len(row["generative_share"]) == 2
    assert row["scale"] == pytest.approx(0.2)
    assert 0 < row["generative_share"][0] < 0.2
    # Both cameras are in the picture, with what is drawn over them below.
    frame = read_video(videos[0])[3]
    halves = np.split(frame[22:, : frame.shape[1] // 2 * 2], 2, axis=1)
    assert all(half.std() > 20 for half in halves)


def test_without_a_known_start_the_next_episode_sees_the_last(act: Callable[..., list[str]], tmp_path: Path) -> None:
    """What happened in every run before; and the reason why simulators are watched."""
    act(record=tmp_path / "videos")
    assert earlier(tmp_path / "videos") == [[0, 2, 4, 4, 4, 4, 4, 4]]


def test_the_simulator_is_left_as_it_was(act: Callable[..., list[str]], tmp_path: Path) -> None:
    finders = list(sys.meta_path)
    act(starts=[START])
    module = importlib.import_module("its_simulator")
    assert module.World.seeds == [0, 1]
    assert module.World.reset.__module__ == "its_simulator"
    assert not hasattr(module.World.reset, "__wrapped__")
    assert type(module.__spec__.loader).__name__ == type(module.__loader__).__name__ == "SourceFileLoader"
    assert sys.meta_path == finders


def test_a_script_that_fails_leaves_whole_videos(act: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        act(record=tmp_path / "videos", starts=[START], after="\n1 / 0")
    assert [len(read_video(video)) for video in sorted((tmp_path / "videos").glob("*.mp4"))] == [4, 4]
    assert not list((tmp_path / "videos").glob(".*"))


@pytest.mark.parametrize("start", [Start("its_simulator", "Word", "reset"), Start("its_simulator", "Other", "reset")])
def test_a_place_that_is_not_there_is_an_error(act: Callable[..., list[str]], start: Start) -> None:
    with pytest.raises(RunError, match=f"--episode-start {start}: its_simulator has no class {start.owner}"):
        act(starts=[start])


def test_robosuite_is_known() -> None:
    assert [str(start) for start in KNOWN] == ["robosuite.environments.base:MujocoEnv.reset"]


def test_nothing_to_draw_is_told(act: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has none"):
        act(recipe=acting(tmp_path / "none.yaml", prior=None), record=tmp_path / "videos")


def test_the_command(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--recipe", str(recipe), "--episode-start", "World.reset", "--explain"])
    assert isinstance(result.exception, RunError)
    assert "write MODULE:CLASS.METHOD, such as robosuite" in str(result.exception)
    words = ["run", "--recipe", str(recipe), "--episode-start", "its_simulator:World.reset", "--explain"]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    assert "its_simulator:World.reset (once imported)" in shown.output
    assert "robosuite.environments.base:MujocoEnv.reset (once imported)" in shown.output


def test_after_import_waits_for_the_module_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("waited_for", "never_asked"):
        (tmp_path / f"{name}.py").write_text("value = 3")
        monkeypatch.delitem(sys.modules, name, raising=False)
    found: list[int] = []
    after_import("waited_for", lambda module: found.append(module.value))
    stop = after_import("never_asked", lambda module: found.append(-1))
    assert found == []
    importlib.import_module("waited_for")
    assert found == [3]
    stop()
    importlib.import_module("never_asked")
    after_import("waited_for", lambda module: found.append(module.value + 1))
    assert found == [3, 4]
