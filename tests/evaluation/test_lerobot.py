"""Data sets in lerobot's layout become rows whose frames are the episodes' own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.lerobot_layout import grey, write_lerobot
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.evaluation.lerobot import lerobot_rows
from vega3d_plugin.evaluation.metrics.errors import ScoreError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.rows.conversation import read_conversation
from vega3d_plugin.training.rows.media import load_video

EPISODES = [grey("put the bowl on the plate", 0, 7), grey("open the drawer", 20, 9), grey("close it", 40, 5)]
VERSIONS = ("v2.1", "v3.0")
SETTINGS = DataSettings.parse({"files": ("-",), "frames": 32})


@pytest.fixture(scope="module", params=VERSIONS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "set", EPISODES, request.param)


def levels(frames: Any) -> list[float]:
    return [float(np.mean(frame)) for frame in frames]


def shown(row: dict[str, Any]) -> list[list[float]]:
    """The brightness of every frame that a reader of the row shows, by camera."""
    return [levels(load_video(medium, SETTINGS).frames) for medium in read_conversation(row, SETTINGS).media]


def test_rows_show_each_episodes_own_frames(whole: Path) -> None:
    made = lerobot_rows(whole)
    assert (made.left_out, made.read, len(made.rows)) == ([], 3, 3)
    for row, episode in zip(made.rows, EPISODES, strict=True):
        assert row["conversations"][1]["value"] == episode.task
        assert row["metadata"]["length"] == len(episode)
        for found, frames in zip(shown(row), episode.cameras.values(), strict=True):
            assert found == pytest.approx(levels(frames), abs=1.5)


def test_the_command_writes_rows_of_one_camera(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["data", "lerobot", str(whole), "--camera", "wrist", "--split", "train", "--out", str(out)]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    assert "3 rows about 3 videos from 3 episodes" in ended.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["set_000000", "set_000001", "set_000002"]
    assert shown(rows[1]) == [pytest.approx(levels(EPISODES[1].cameras["observation.images.wrist"]), abs=1.5)]


def test_episodes_without_their_frames_are_left_out_and_named(tmp_path: Path) -> None:
    old = write_lerobot(tmp_path / "old", EPISODES, "v2.1")
    (old / "videos/chunk-000/observation.images.wrist/episode_000001.mp4").unlink()
    lines = (old / "meta/episodes.jsonl").read_text().splitlines()
    lines[0], lines[2] = (
        json.dumps({**json.loads(lines[0]), "length": 8}),
        json.dumps({"episode_index": 2, "length": 5}),
    )
    (old / "meta/episodes.jsonl").write_text("\n".join([*lines, "{"]))
    made = lerobot_rows(old)
    assert (made.read, made.rows) == (4, [])
    for message, words in zip(
        made.left_out,
        ("episode 0: it has 8 frames, and", "episode_000001.mp4 is not there", "it names no task", "not JSON"),
        strict=True,
    ):
        assert words in message
    ended = CliRunner().invoke(app, ["data", "lerobot", str(old), "--out", str(tmp_path / "r.jsonl")])
    assert ended.exit_code == 1
    assert "None of 4 episodes became a row" in " ".join(ended.output.split())


def test_a_part_past_the_end_of_its_video_is_left_out_and_named(tmp_path: Path) -> None:
    new = write_lerobot(tmp_path / "new", EPISODES, "v3.0")
    path = new / "meta/episodes/chunk-000/file-000.parquet"
    values = pq.read_table(path).to_pylist()
    values[1]["videos/observation.images.image/to_timestamp"] = 9.0
    values[2]["videos/observation.images.image/from_timestamp"] = None
    pq.write_table(pa.Table.from_pylist(values), path)
    made = lerobot_rows(new)
    assert [row["metadata"]["episode_index"] for row in made.rows] == [0]
    assert "16 frames, 1.600 seconds: seconds 0.7 to 9 end after it" in made.left_out[0]
    assert "where it lies in the videos of observation.images.image is not told" in made.left_out[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version is 'v1.6'; 2.0, 2.1 and 3.0 are read"),
        ({"features": {"observation.images.image": {"dtype": "image"}}}, "as images in its tables"),
        ({"video_path": "../{video_key}.mp4"}, "names no file inside the data set"),
        ({"video_path": "{video_key.__class__}.mp4"}, "names no file inside the data set"),
        ({"video_path": "{camera}.mp4"}, "has the unknown {camera}"),
    ],
)
def test_data_sets_that_cannot_be_read(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "meta").mkdir()
    info = {"codebase_version": "v2.1", "features": {"observation.images.image": {"dtype": "video"}}} | change
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["a"], "length": 1}')
    with pytest.raises(ScoreError, match=words.replace("{", r"\{")):
        lerobot_rows(tmp_path)


def test_what_is_not_there_is_told(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"no camera 'wirst'.*There are: observation\.images\.image, "):
        lerobot_rows(whole, ["wirst"])
    with pytest.raises(ScoreError, match=r"no split 'val'\. It has: 'train'"):
        lerobot_rows(whole, split="val")
    with pytest.raises(ScoreError, match=r"has no meta/info\.json"):
        lerobot_rows(tmp_path)
    if (whole / "meta/episodes").is_dir():
        (tmp_path / "meta/episodes/chunk-000").mkdir(parents=True)
        (tmp_path / "meta/info.json").write_text((whole / "meta/info.json").read_text())
        (tmp_path / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1 nothing")
        with pytest.raises(ScoreError, match=r"file-000.parquet cannot be read"):
            lerobot_rows(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="lerobot is not installed")
def test_lerobots_own_reader_shows_the_same_frames(tmp_path: Path) -> None:
    import lerobot
    from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

    assert lerobot.__version__
    whole = write_lerobot(tmp_path / "set", EPISODES, CODEBASE_VERSION)
    data = LeRobotDataset("invented/set", root=whole)
    made = lerobot_rows(whole)
    first = 0
    for row, episode in zip(made.rows, EPISODES, strict=True):
        assert data[first]["task"] == row["conversations"][1]["value"]
        for medium, camera in zip(read_conversation(row, SETTINGS).media, row["metadata"]["cameras"], strict=True):
            theirs = [data[first + i][camera].permute(1, 2, 0).numpy() * 255 for i in range(len(episode))]
            assert np.array_equal(np.stack(load_video(medium, SETTINGS).frames), np.stack(theirs).round())
        first += len(episode)
