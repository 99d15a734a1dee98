"""A row that names a part of a video shows the frames of that part, whoever reads it, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vega3d_plugin.contracts.errors import BadRowsError, RowError, VideoError
from vega3d_plugin.features.extraction.shard import digest
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.scenes.video import read_range, read_video
from vega3d_plugin.scenes.video_parts import VideoPart, timeline
from vega3d_plugin.training.data import ConversationData
from vega3d_plugin.training.rows.conversation import Medium, read_conversation
from vega3d_plugin.training.rows.encoding import Encoder, _as_images
from vega3d_plugin.training.rows.files import Rows
from vega3d_plugin.training.rows.media import load_video
from vega3d_plugin.training.unit_keys import media_key

FRAMES, FPS = 60, 20
SETTINGS = DataSettings.parse({"files": ("-",), "frames": 64})
RELEASED = DataSettings.parse({"files": ("-",), "preset": "released", "frames": 64, "sampling": "uniform"})


def numbers(frames: Any) -> list[int]:
    """The numbers that the brightness of frames tells."""
    return [round((float(np.mean(frame)) - 20) / 3.5) for frame in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``v.mp4``: 60 frames, 20 a second, whose key frames are not the first of their group to be shown."""
    folder = tmp_path_factory.mktemp("parts")
    with av.open(str(folder / "v.mp4"), "w") as container:
        options = {"crf": "10", "x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for number in range(FRAMES):
            grey = np.full((32, 48, 3), round(20 + 3.5 * number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    (folder / "f").mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (20 + 7 * number,) * 3).save(folder / "f" / f"{number}.png")
    return folder


def row(video: Any, style: str = "llava") -> dict[str, Any]:
    if style == "chat":
        content = [{"type": "video", **video}, {"type": "text", "text": "What?"}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "That."}]}
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}]
    return {"video": video, "conversations": turns}


def shown(folder: Path, video: Any, style: str = "llava", settings: DataSettings = SETTINGS) -> list[int]:
    (medium,) = read_conversation(row(video, style), settings, folder).media
    return numbers(load_video(medium, settings).frames)


def test_every_stretch_is_what_reading_all_of_it_gives(folder: Path) -> None:
    whole = read_video(folder / "v.mp4")
    assert numbers(whole) == list(range(FRAMES))
    for start in range(FRAMES):
        chosen = list(range(start, min(start + 7, FRAMES), 3))
        assert np.array_equal(read_range(folder / "v.mp4", chosen), whole[chosen]), start


def test_what_comes_before_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.scenes import video

    seen: list[Any] = []
    real = video.decoded
    monkeypatch.setattr(video, "decoded", lambda *given: (seen.append(frame) or frame for frame in real(*given)))
    read_range(folder / "v.mp4", [50, 52])
    assert len(seen) < 20


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"start": 1.0, "end": 1.5}, range(20, 30)),
        # As a file of numbers has it: a third of a second, ten times.
        ({"start": 0.1 + 0.2, "end": 0.7000000000000001}, range(6, 14)),
        ({"start": 2.9}, range(58, 60)),
        ({"end": 0.1}, range(2)),
        ({"end": 3.0}, range(60)),
        ({"start_frame": 13, "end_frame": 15}, range(13, 15)),
        ({"start_frame": 57}, range(57, 60)),
        ({}, range(60)),
    ],
)
def test_parts(folder: Path, part: dict[str, Any], expected: range) -> None:
    assert shown(folder, {"path": "v.mp4", **part}) == list(expected)
    assert shown(folder, [{"path": "v.mp4", **part}]) == list(expected)
    assert shown(folder, {"video": {"path": "v.mp4", **part}}, "chat") == list(expected)
    assert shown(folder, {"video": "v.mp4", **part}, "chat") == list(expected)
    assert shown(folder, {"path": "v.mp4", **part}, settings=RELEASED) == list(expected)


def test_a_part_as_qwens_utilities_write_it(folder: Path) -> None:
    assert shown(folder, {"video": "v.mp4", "video_start": 1.0, "video_end": 1.5}, "chat") == list(range(20, 30))


def test_a_part_of_a_folder_of_frames(folder: Path) -> None:
    assert shown(folder, {"path": "f", "start_frame": 2, "end_frame": 4}) == [4, 6]
    seconds = DataSettings.parse({"files": ("-",), "folder_fps": 2.0})
    assert shown(folder, {"path": "f", "start": 1.0, "end": 2.0}, settings=seconds) == [4, 6]
    with pytest.raises(RowError, match="f says no times of its frames: write its part as start_frame and end_frame"):
        shown(folder, {"path": "f", "start": 1.0})


def test_frames_are_spread_over_the_part_and_keep_their_rate(folder: Path) -> None:
    settings = DataSettings.parse({"files": ("-",), "frames": 3})
    video = load_video(Medium("video", folder / "v.mp4", part=VideoPart(1.0, 2.05)), settings)
    assert numbers(video.frames) == [20, 30, 40]
    assert (video.indices, video.total, video.fps) == ([0, 10, 20], 21, FPS)
    by_second = DataSettings.parse({"files": ("-",), "frames": 8, "sampling": "fps", "fps": 4.0})
    assert shown(folder, {"path": "v.mp4", "start": 1.0, "end": 2.0}, settings=by_second) == [20, 26, 33, 39]


def test_frames_as_images_are_those_of_the_part(folder: Path) -> None:
    conversation = read_conversation(row({"path": "v.mp4", "start_frame": 10, "end_frame": 12}), SETTINGS, folder)
    pictures, _ = _as_images(conversation, SETTINGS)
    assert numbers(pictures.values()) == [10, 11]


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (
            {"path": "v.mp4", "start": 1, "end": 3.5},
            "v.mp4 has 60 frames, 3.000 seconds: seconds 1 to 3.5 end after",
        ),
        ({"path": "v.mp4", "start": 3.2}, "seconds 3.2 to the end hold none of its frames"),
        ({"path": "v.mp4", "start_frame": 10, "end_frame": 61}, "frames 10 to 61 end after it"),
        ({"path": "v.mp4", "start": 2, "end": 1}, "the end must come after the start"),
        ({"path": "v.mp4", "start": -1}, "`start` must be a number of seconds, 0 or more, found -1"),
        ({"path": "v.mp4", "start_frame": 1.5}, "`start_frame` must be a whole number of frames"),
        ({"path": "v.mp4", "start": 1, "end_frame": 3}, "in seconds or in frames, found start, end_frame"),
        ({"path": "v.mp4", "begin": 1}, "unknown 'begin'"),
        ({"start": 1}, "its path is None"),
        ({"path": "f", "start_frame": 2, "end_frame": 9}, "f has 6 frames: frames 2 to 9 end after it"),
    ],
)
def test_parts_that_are_none_are_told_before_training(folder: Path, video: Any, words: str) -> None:
    (folder / "rows.jsonl").write_text(json.dumps(row(video)))
    data = ConversationData(Rows([folder / "rows.jsonl"]), Encoder(None, SETTINGS))
    with pytest.raises(BadRowsError) as told:
        data.check()
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("key", "value"), [("image", {"path": "v.mp4", "start": 0}), ("image", 5), ("video", [[5, 5]])]
)
def test_a_picture_that_is_none_is_told_before_training(key: str, value: Any) -> None:
    row = {key: value, "conversations": [{"from": "human", "value": f"<{key}>?"}, {"from": "gpt", "value": "."}]}
    with pytest.raises(RowError, match="an image must be a path or a picture of PIL, found"):
        read_conversation(row, SETTINGS)


def test_a_part_without_a_path(folder: Path) -> None:
    given = row({"start": 1.0}, "chat") | {"videos": ["v.mp4"]}
    with pytest.raises(RowError, match="start beside no path"):
        read_conversation(given, SETTINGS, folder)


def test_parts_have_names_of_their_own_and_whole_videos_keep_theirs(folder: Path) -> None:
    path = folder / "v.mp4"
    parts = [None, VideoPart(0, 1), VideoPart(1, 2), VideoPart(0, 1, "frames")]
    keys = {media_key("", [Medium("video", path, part=part)]) for part in parts}
    assert len(keys) == 4
    stat = path.stat()
    identity = ("video", None, (), [(str(path.resolve()), stat.st_size, stat.st_mtime_ns)])
    assert media_key("", [Medium("video", path)]) == digest(repr(identity))


def test_a_file_that_changes_is_looked_at_again(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    shutil.copy(folder / "v.mp4", path)
    assert timeline(path).total == FRAMES
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(VideoError, match="not a video, or damaged"):
        timeline(path)
