"""``scene: ADDRESS`` in a row becomes the frames of the chosen views, which the readers of rows take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import scene_layouts as layouts

from vega3d_plugin.contracts.errors import SceneError, SettingsError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.scenes.export import export_video
from vega3d_plugin.scenes.rows import scene_frames
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.views import choose_views
from vega3d_plugin.scenes.worlds import rendered_scene
from vega3d_plugin.training.rows.conversation import Medium, read_conversation
from vega3d_plugin.training.rows.media import load_video


@pytest.fixture(scope="module")
def room() -> Scene:
    return layouts.kept(rendered_scene(6, 7, (48, 64)))


def test_files_stay_files_and_nothing_is_decoded(room: Scene, tmp_path: Path) -> None:
    layouts.write_posed_images(room, tmp_path / "data" / "scene")
    frames = scene_frames("scene", tmp_path / "data", 3)
    assert [path.name for path in frames] == ["00000.jpg", "00003.jpg", "00006.jpg"]
    assert all(path.is_absolute() for path in frames)
    assert [path.name for path in scene_frames(str(tmp_path / "data" / "scene"))] == [f"{i:05d}.jpg" for i in range(7)]


def test_a_row_may_say_which_views(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "scene")
    chosen = scene_frames({"path": str(folder), "views": 3, "how": "coverage"})
    expected = choose_views(room, "coverage", 3, gains=False).indices
    assert [path.name for path in chosen] == [f"{i:05d}.jpg" for i in expected]
    given = scene_frames({"path": str(folder), "how": "given", "given": ["00002.jpg", 5]})
    assert [path.name for path in given] == ["00002.jpg", "00005.jpg"]
    every = scene_frames({"path": str(folder), "how": "every", "step": 3})
    assert [path.name for path in every] == ["00000.jpg", "00003.jpg", "00006.jpg"]


def test_rendered_rooms_and_videos_give_pictures(room: Scene, tmp_path: Path) -> None:
    frames = scene_frames("room:6?views=7&size=48x64", tmp_path, 2)
    assert all(isinstance(frame, Image.Image) for frame in frames)
    for frame, index in zip(frames, (0, 6), strict=True):
        assert np.abs(np.asarray(frame) / 255 - room.views[index].frame().permute(1, 2, 0).numpy()).max() < 1e-6
    export_video(room, tmp_path / "room.mp4")
    assert len(scene_frames("room.mp4", tmp_path, 4)) == 4


def test_a_picture_on_its_side_is_not_turned_by_the_reader_of_rows(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "scene")
    exif = Image.Exif()
    exif[274] = 6
    Image.open(folder / "00000.jpg").save(folder / "00000.jpg", exif=exif)
    first, second = scene_frames({"path": str(folder), "how": "given", "given": [0, 1]})
    assert isinstance(first, Image.Image)
    assert first.size == (64, 48)
    assert isinstance(second, Path)


def test_training_takes_them_as_the_frames_of_one_video(room: Scene, tmp_path: Path) -> None:
    """The scene is a video whose frames are listed."""
    layouts.write_posed_images(room, tmp_path / "scene")
    settings = DataSettings(files=["rows.json"], frames=4)
    row = {
        "scene": "scene",
        "conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "Here."}],
    }
    for address in ("scene", "room:6?views=7&size=48x64"):
        read = read_conversation({**row, "scene": address}, settings, tmp_path)
        (medium,) = read.media
        assert medium.kind == "video"
        video = load_video(Medium("video", medium.source), settings)
        assert len(video.frames) == 4
        assert video.frames[0].shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "scene must be a mapping of settings, got NoneType"),
        (3, "got int"),
        ("", "path"),
        ({"views": 3}, "path"),
        ({"path": "room:1", "view": 3}, r"view.*Did you mean 'views'"),
        ({"path": "room:1", "views": "many"}, "views"),
        ({"path": "room:1", "views": True}, "views"),
        ({"path": "room:1", "views": 0}, "views"),
        ({"path": "room:1", "how": "nearest"}, "how"),
        ({"path": "room:1", "how": ["uniform"]}, "how"),
        ({"path": "room:1", "how": "given", "given": [[1]]}, "given"),
        ({"path": "room:1", "how": "given"}, "No views are given"),
    ],
)
def test_what_is_no_scene(value: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        scene_frames(value)


def test_a_scene_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=f"{tmp_path}/nowhere does not exist"):
        scene_frames("nowhere", tmp_path)
