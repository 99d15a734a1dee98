"""A scene written down again holds what it held, and what cannot be held is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scene_layouts as layouts
import torch
from PIL import Image

from vega3d_plugin.errors import SceneError, UnknownNameError
from vega3d_plugin.scenes import export as exporting
from vega3d_plugin.scenes.contact_sheet import contact_sheet, draw_contact_sheet
from vega3d_plugin.scenes.export import ExportWarning, export_folder, export_rows, export_video
from vega3d_plugin.scenes.floor_plan import floor_plan
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.questions import Question, corners, object_questions, read_questions
from vega3d_plugin.scenes.scene import Scene, SceneObject
from vega3d_plugin.scenes.views import choose_views
from vega3d_plugin.scenes.worlds import rendered_scene
from vega3d_plugin.training.conversation import read_conversation
from vega3d_plugin.training.settings import DataSettings

ASKED = [Question("What is this?", "a room"), Question("How many doors?", "1", "object_counting")]


@pytest.fixture(scope="module")
def room() -> Scene:
    return layouts.kept(rendered_scene(6, 4, (48, 64)))


def test_a_folder_is_whole_or_not_there(room: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*given: object) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "_write_view", fail)
        with pytest.raises(SceneError, match="cannot be written: No space left"):
            export_folder(room, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export_folder(room, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:3] == ["00000.jpg", "00000.png", "00000.txt"]
    with pytest.raises(SceneError, match="it holds something"):
        export_folder(room, tmp_path / "out")


def test_a_folder_of_pictures_alone(room: Scene, tmp_path: Path) -> None:
    bare = Scene.from_arrays(room.frames())
    export_folder(bare, tmp_path / "out")
    found = open_scene(tmp_path / "out")
    assert len(found) == 4
    assert not found.has_depth


def test_what_a_folder_cannot_hold(room: Scene, tmp_path: Path) -> None:
    two = replace(room.views[1], intrinsics=room.views[1].intrinsics * torch.tensor([[2.0], [2], [1]]))
    with pytest.raises(SceneError, match="'00000' and '00001' differ in their intrinsics"):
        export_folder(replace(room, views=(room.views[0], two)), tmp_path / "a")
    with pytest.raises(SceneError, match="differ in their pose"):
        export_folder(replace(room, views=(room.views[0], replace(room.views[1], pose=None))), tmp_path / "a")
    with pytest.raises(SceneError, match="only some views have depth"):
        export_folder(replace(room, views=(room.views[0], replace(room.views[1], read_depth=None))), tmp_path / "a")
    far = replace(room.views[0], read_depth=lambda: torch.full((48, 64), 70.0))
    with pytest.raises(SceneError, match=r"depth of 70\.0 m; 16 bits of millimetres hold 65\.535 m"):
        export_folder(replace(room, views=(far,)), tmp_path / "a")
    with pytest.warns(ExportWarning, match="up to one scale"):
        export_folder(replace(room, metric=False), tmp_path / "b")


def test_a_video_holds_the_views_in_order(room: Scene, tmp_path: Path) -> None:
    export_video(room, tmp_path / "out.mp4", fps=4)
    found = open_scene(tmp_path / "out.mp4")
    assert [view.name for view in found.views] == ["00000", "00001", "00002", "00003"]
    assert float((found.frames() - room.frames()).abs().mean()) < 0.03
    for write in (export_video, lambda scene, path: contact_sheet(scene, choose_views(scene), path)):
        with pytest.raises(SceneError, match=r"below\.mp4 cannot be written: "):
            write(room, tmp_path / "out.mp4" / "below.mp4")


def test_frames_of_a_video_come_in_any_order(room: Scene, tmp_path: Path) -> None:
    export_video(room, tmp_path / "out.mp4")
    found = open_scene(tmp_path / "out.mp4")
    straight = found.frames()
    for index in (3, 0, 2, 2, 1, 3):
        assert torch.equal(found.views[index].frame(), straight[index])


def test_odd_sides_are_cut_and_told(tmp_path: Path) -> None:
    odd = Scene.from_arrays(torch.rand(2, 3, 33, 47))
    with pytest.warns(ExportWarning, match="47x33 is cut to 46x32"):
        export_video(odd, tmp_path / "odd.mp4")
    assert open_scene(tmp_path / "odd.mp4").views[0].size == (32, 46)


@pytest.mark.parametrize("style", ["llava", "vg-llm"])
def test_rows_are_read_by_training(room: Scene, tmp_path: Path, style: str) -> None:
    assert export_rows(room, tmp_path / "rows.json", ASKED, style) == 2
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["id"] for row in rows] == ["room_0006_0000", "room_0006_0001"]
    assert rows[1]["question_type"] == "object_counting"
    read = read_conversation(rows[0], DataSettings(files=["rows.json"]), tmp_path)
    assert len(read.media) == 4
    assert all(medium.source.is_file() for medium in read.media)
    assert read.turns[0].text.endswith("What is this?")
    assert read.turns[1].text == "a room"
    assert ("Frame-3: " in read.turns[0].text) == (style == "vg-llm")
    if style == "vg-llm":
        assert np.allclose(rows[0]["cam2global"], room.poses.numpy())
        assert np.allclose(np.array(rows[0]["cam2img"])[:3, :3], room.views[0].intrinsics.numpy())
        assert np.array(rows[0]["axis_align_matrix"]).shape == (4, 4)
    picture = np.asarray(Image.open(tmp_path / rows[0]["images"][2]))
    assert np.abs(picture / 255 - room.views[2].frame().permute(1, 2, 0).numpy()).mean() < 0.03


def test_rows_that_cannot_be_written(room: Scene, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="would hold no rows"):
        export_rows(room, tmp_path / "rows.json", [])
    with pytest.raises(UnknownNameError, match="Did you mean 'vg-llm'"):
        export_rows(room, tmp_path / "rows.json", ASKED, "vgllm")
    export_rows(room, tmp_path / "rows.json", ASKED)
    with pytest.raises(SceneError, match="rows_images/room_0006 cannot be written: it is there"):
        export_rows(room, tmp_path / "rows.json", ASKED)


def test_questions_about_objects_have_true_answers() -> None:
    kinds = set()
    for seed in range(6):
        scene = layouts.kept(rendered_scene(seed, 6, (48, 64)))
        names = [thing.name for thing in scene.objects]
        for question in object_questions(scene):
            kinds.add(question.kind)
            if question.kind == "object_counting":
                name = question.text.removeprefix("How many ").partition("(s)")[0]
                assert int(question.answer) == names.count(name) > 1
            elif question.kind == "object_size_estimation":
                name = question.text.rpartition(" of the ")[2].partition(",")[0]
                (thing,) = (each for each in scene.objects if each.name == name)
                assert abs(int(question.answer) / 100 - max(thing.size)) <= 0.005
            else:
                one, two = question.text.partition("camera, the ")[2].partition("?")[0].split(" or the ")
                middle = {}
                for name in (one, two):
                    inside = scene.views[0].instances() == names.index(name)
                    middle[name] = float(scene.views[0].depth()[inside].median())
                assert question.answer == min(middle, key=middle.get)
    assert kinds == {"object_counting", "object_size_estimation", "nearer"}


def test_a_scene_without_instances_answers_nothing(room: Scene, tmp_path: Path) -> None:
    export_folder(room, tmp_path / "out")
    with pytest.raises(SceneError, match="does not know which object each pixel shows"):
        object_questions(open_scene(tmp_path / "out"))


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text('[{"question": "Q?", "answer": "A", "question_type": "t"}, {"question": "R?", "answer": "B"}]')
    assert read_questions(path) == [Question("Q?", "A", "t"), Question("R?", "B", "given")]
    for text, message in (
        ('[{"question": "Q?"}]', "entry 0: `question` and `answer` must be texts"),
        ('["Q?"]', "entry 0"),
        ('{"a": 1}', "must hold a JSON list, found dict"),
        ("[", "line 1, column 2: no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(SceneError, match=message):
            read_questions(path)


def test_corners_of_a_turned_box() -> None:
    flat = corners(SceneObject("a", (1, 2, 3), (2, 4, 6)))
    assert flat.min(axis=0).tolist() == [0, 0, 0]
    assert flat.max(axis=0).tolist() == [2, 4, 6]
    turned = corners(SceneObject("a", (0, 0, 0), (2, 4, 6), (np.pi / 2, 0, 0)))
    assert np.allclose(np.abs(turned).max(axis=0), [2, 1, 3])
    tilted = corners(SceneObject("a", (0, 0, 0), (2, 4, 6), (0, np.pi / 2, 0)))
    assert np.allclose(np.abs(tilted).max(axis=0), [1, 3, 2])


def test_the_sheet_shows_the_views_the_way_and_the_bars(room: Scene, tmp_path: Path) -> None:
    choice = choose_views(room, "coverage", 3)
    contact_sheet(room, choice, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    whole = draw_contact_sheet(room, choice)
    assert sheet.shape == (whole.height, whole.width, 3)
    # Each chosen picture is on it: its mean colour is that of the place where it lies.
    bare = draw_contact_sheet(
        Scene.from_arrays(room.frames()), choose_views(Scene.from_arrays(room.frames()), "uniform", 3)
    )
    assert bare.width < whole.width
    other = draw_contact_sheet(room, choose_views(room, "given", given=[0]))
    assert other.size != whole.size


def test_the_floor_plan_lies_as_the_room_does() -> None:
    """A camera that walks along +x and looks along +y: the way is a level line, the arrows point up."""
    look = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64)
    poses = look.repeat(5, 1, 1)
    poses[:, 0, 3] = torch.arange(5.0)
    matrix = torch.tensor([[20.0, 0, 15.5], [0, 20, 11.5], [0, 0, 1]])
    red = torch.zeros(5, 3, 24, 32)
    red[:, 0] = 1
    scene = Scene.from_arrays(red, torch.full((5, 24, 32), 2.0), matrix, poses, alignment=torch.eye(4))
    picture = np.asarray(floor_plan(scene, [0, 4])).astype(int)
    wall = (picture[..., 0] > 250) & (picture[..., 1] < 5)
    arrows = (picture == (196, 46, 30)).all(axis=-1)
    way = (picture == (40, 90, 180)).all(axis=-1)
    rows = {name: np.flatnonzero(mask.any(axis=1)) for name, mask in (("wall", wall), ("arrows", arrows), ("way", way))}
    assert rows["wall"].max() < rows["way"].min()
    assert rows["arrows"].min() < rows["way"].min()
    assert rows["way"].max() - rows["way"].min() <= 2
    # Without an alignment, up is what is up in the pictures: the same plan, turned.
    free = np.asarray(floor_plan(replace(scene, alignment=None), [0, 4])).astype(int)
    assert ((free[..., 0] > 250) & (free[..., 1] < 5)).sum() == wall.sum()
    with pytest.raises(SceneError, match="lacks pose"):
        floor_plan(Scene.from_arrays(red), [0])
