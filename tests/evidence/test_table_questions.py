"""Questions about tables: answers from invented poses, balance, and that no task is in two splits."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from language import table_questions
from language.table_questions import KINDS, Look, look, looks
from language.tables import TASKS, ask, rows, tables_of

from vega3d_plugin.scenes.export import export_folder
from vega3d_plugin.scenes.scene import Scene, SceneObject

INTRINSICS = np.array([[40.0, 0, 39.5], [0, 40.0, 29.5], [0, 0, 1]])
SIZE = (60, 80)
#: Left to right and away from a camera at the origin that looks along z: a cup, a box, a long loaf.
THINGS = (
    SceneObject("cup", (-0.5, 0.0, 1.1), (0.1, 0.2, 0.2)),
    SceneObject("box", (0.0, 0.0, 0.9), (0.2, 0.2, 0.2), (0.5, 0.0, 0.0)),
    SceneObject("loaf", (0.6, 0.0, 1.3), (0.6, 0.2, 0.2)),
)


def pose(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    """A camera that looks along z."""
    matrix = np.eye(4)
    matrix[:3, 3] = x, 0.0, z
    return matrix


def seen(camera: np.ndarray, things: tuple[SceneObject, ...] = THINGS) -> Look:
    """With a point at each thing's centre, as if nothing hid it."""
    return look(camera, INTRINSICS, SIZE[1], np.array([thing.centre for thing in things]), things)


def answers(first: Look, second: Look) -> dict[str, str]:
    """By text."""
    return {one.text: one.answer for one in table_questions.table_questions(first, second, (0, 3))}


def test_answers_follow_from_poses() -> None:
    first, second = seen(pose()), seen(pose(0.3, -0.2))
    found = answers(first, second)
    before = "In the first picture, is the"
    assert found[f"{before} cup left or right of the box?"] == "left"
    assert found[f"{before} box left or right of the cup?"] == "right"
    assert found[f"{before} box nearer to the camera than the loaf?"] == "yes"
    assert found[f"{before} loaf nearer to the camera than the box?"] == "no"
    assert found[f"{before} loaf more than 120 cm from the camera?"] == "yes"
    assert found[f"{before} box more than 100 cm from the camera?"] == "no"
    across = "In the first picture from left to right, is the"
    assert found[f"{across} order cup, box, loaf?"] == "yes"
    assert found[f"{across} order box, cup, loaf?"] == "no"
    assert found[f"{across} box between the cup and the loaf?"] == "yes"
    assert found[f"{across} cup between the box and the loaf?"] == "no"
    assert found["In the first picture, which thing is longer, the leftmost or the rightmost?"] == "rightmost"
    assert found["Did the camera move left or right?"] == "right"
    assert found["Did the camera come closer to the box?"] == "no"
    back = answers(second, first)
    assert back["Did the camera move left or right?"] == "left"
    assert back["Did the camera come closer to the box?"] == "yes"
    assert {one.kind for one in table_questions.table_questions(first, second, (0, 3))} == {*KINDS}


def test_what_is_not_plain_is_not_asked() -> None:
    """Neither near a border, nor of what is hidden, out of the picture, or one of two of its name."""
    assert not any("100 cm" in text and "cup" in text for text in answers(seen(pose(-0.5, 0.1)), seen(pose())))
    hidden = look(pose(), INTRINSICS, SIZE[1], np.array([THINGS[0].centre]), THINGS)
    assert {*hidden.things} == {"cup"}
    assert not seen(pose(-5.0)).things
    twice = (*THINGS, SceneObject("cup", (0.2, 0.0, 1.0), (0.1, 0.1, 0.1)))
    assert "cup" not in seen(pose(), twice).things
    assert "Did the camera move left or right?" not in answers(seen(pose()), seen(pose(0.1)))


def test_a_point_belongs_to_the_smallest_box_around_it() -> None:
    turned = SceneObject("tray", (0.0, 0.0, 1.0), (1.0, 0.4, 0.1), (np.pi / 4, 0.0, 0.0))
    inside, outside, cup = [0.3, 0.3, 1.0], [0.3, -0.3, 1.0], [0.0, 0.0, 1.0]
    small = SceneObject("cup", (0.0, 0.0, 1.0), (0.1, 0.1, 0.1))
    assert table_questions._owners(np.array([inside, outside, cup]), [small, turned]).tolist() == [1, -1, 0]


def scene(number: int) -> Scene:
    """Five views of flat things at the depth of their centres; ``number`` moves them."""
    rng = np.random.default_rng(number)
    places = rng.permutation([-0.5, 0.0, 0.5])
    things = [
        SceneObject(name, (float(x), 0.0, float(rng.choice([1.0, 1.25, 1.5]))), (length, 0.2, 0.1))
        for (name, length), x in zip({"cup": 0.3, "box": 0.3, "loaf": 0.6}.items(), places, strict=True)
    ]
    poses = np.stack([pose(0.2 * (view - 2), 0.05 * view) for view in range(5)])
    depth = np.zeros((5, *SIZE))
    for view in range(5):
        for thing in sorted(things, key=lambda one: -one.centre[2]):
            x, _, z = np.array(thing.centre) - poses[view][:3, 3]
            middle = 40 * x / z + 39.5
            half = 40 * thing.size[0] / 2 / z
            depth[view, 27:33, max(0, round(middle - half)) : max(0, round(middle + half))] = z
    frames = np.repeat((depth / 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    found = Scene.from_arrays(frames, depth.astype(np.float32), INTRINSICS, poses, alignment=np.eye(4))
    return Scene(**{**vars(found), "objects": tuple(things)})


def test_every_answer_to_a_text_is_equally_frequent() -> None:
    scenes = [scene(number) for number in range(12)]
    assert {*looks(scenes[0])[2].things} == {"cup", "box", "loaf"}
    found = ask(scenes, 0, window=4)
    assert len({one.question.kind for one in found}) >= 6
    said = Counter((one.question.text, one.question.answer) for one in found)
    for question in {one.question for one in found}:
        assert len({said[question.text, word] for word in question.choices}) == 1
    assert found == ask(scenes, 0, window=4)
    assert found != ask(scenes, 1, window=4)


def test_rows_name_pictures_that_are_there_and_no_task_is_in_two_splits(tmp_path: Path) -> None:
    assert sorted(chain.from_iterable(TASKS.values())) == list(range(10))
    for state in range(4):
        export_folder(scene(state), tmp_path / f"libero_goal_9_{state}")
    assert len(tables_of(tmp_path, "test")) == 4
    for row in rows(tmp_path, "test"):
        assert all((tmp_path / name).is_file() for name in row["images"])
        assert row["conversations"][1]["value"] in row["choices"]
    with pytest.raises(SystemExit, match="no table of train"):
        rows(tmp_path, "train")


def test_the_library_would_say_where_objects_are_missing() -> None:
    """A scene without depth has no such questions."""
    from vega3d_plugin.contracts.errors import SceneError

    with pytest.raises(SceneError):
        looks(Scene.from_arrays(torch.rand(2, 3, 8, 8)))
