"""The room's frames, depth, poses and answers must describe one and the same world."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vega3d_plugin.contracts.errors import SettingsError
from vega3d_plugin.evaluation.demo.questions import Question, ask
from vega3d_plugin.scenes.rendered import ROOM, RoomClip, render_room, save_geometry

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def clips() -> dict[int, RoomClip]:
    return {seed: render_room(12, (96, 128), seed) for seed in SEEDS}


def to_world(clip: RoomClip, frame: int, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """World points [N, 3] of pixels, from nothing but depth, intrinsics and pose."""
    rays = np.linalg.inv(clip.intrinsics) @ np.stack([u, v, np.ones(len(u))])
    camera = np.vstack([rays * clip.depth[frame][v, u], np.ones(len(u))])
    return (np.linalg.inv(clip.world_to_camera[frame]) @ camera)[:3].T


def project(clip: RoomClip, frame: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, row and depth [N] of world points in a frame."""
    camera = clip.world_to_camera[frame] @ np.vstack([points.T, np.ones(len(points))])
    x, y, z = clip.intrinsics @ camera[:3]
    return x / z, y / z, z


def eyes(clip: RoomClip) -> np.ndarray:
    return np.linalg.inv(clip.world_to_camera)[:, :3, 3]


def test_shapes_types_and_ranges(clips):
    clip = clips[0]
    assert clip.frames.shape == (12, 96, 128, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.depth.shape == clip.instance.shape == (12, 96, 128)
    assert clip.depth.dtype == np.float32
    assert clip.depth.min() > 0.3
    assert clip.depth.max() < np.linalg.norm(ROOM)
    assert clip.world_to_camera.shape == (12, 4, 4)
    assert clip.world_to_camera.dtype == clip.intrinsics.dtype == np.float64
    focal = 64 / np.tan(np.radians(75 / 2))
    np.testing.assert_allclose(clip.intrinsics, [[focal, 0, 63.5], [0, focal, 47.5], [0, 0, 1]])
    assert set(np.unique(clip.instance)) == set(range(-1, 6))
    assert len({box.name for box in clip.boxes}) == len({box.colour for box in clip.boxes}) == 6


@pytest.mark.parametrize("seed", SEEDS)
def test_pixels_of_a_box_lie_on_its_surface(clips, seed):
    clip = clips[seed]
    for frame in range(len(clip.frames)):
        for i, box in enumerate(clip.boxes):
            points = to_world(clip, frame, *np.nonzero(clip.instance[frame] == i))
            if len(points):
                offset = np.abs(points - box.centre) / (np.array(box.size) / 2)
                np.testing.assert_allclose(offset.max(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_pixels_of_the_room_lie_on_its_walls(clips, seed):
    clip = clips[seed]
    points = to_world(clip, 3, *np.nonzero(clip.instance[3] == -1))
    np.testing.assert_allclose(np.minimum(np.abs(points), np.abs(points - ROOM)).min(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_reprojection_into_another_frame_finds_the_same_place(clips, seed):
    clip = clips[seed]
    height, width = clip.instance.shape[1:]
    for one, two in ((0, 1), (4, 6), (9, 8)):
        v, u = np.nonzero(clip.instance[one] >= 0)
        x, y, z = project(clip, two, to_world(clip, one, v, u))
        column, row = np.rint(x).astype(int), np.rint(y).astype(int)
        inside = (z > 0) & (column >= 1) & (column < width - 1) & (row >= 1) & (row < height - 1)
        v, u, column, row, z = v[inside], u[inside], column[inside], row[inside], z[inside]
        near = [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        # The projected place falls between pixels, so its depth lies between those of the pixels around.
        depths = np.stack([clip.depth[two][place] for place in near])
        assert (depths.min(axis=0) < z * 1.01).all(), "nothing can be seen through a place that another frame met"
        # Away from outlines, where the nearest pixel may belong to something else.
        clear = np.ptp(np.stack([clip.instance[two][place] for place in near]), axis=0) == 0
        visible = clear & (z > depths.min(axis=0) * 0.99) & (z < depths.max(axis=0) * 1.01)
        assert visible.sum() > 300
        same = clip.instance[one][v, u] == clip.instance[two][row, column]
        assert same[visible].mean() > 0.99
        colours = np.abs(clip.frames[one][v, u].astype(int) - clip.frames[two][row, column])
        assert np.median(colours[visible]) < 6
        assert np.percentile(colours[visible & same], 80) < 40


@pytest.mark.parametrize("seed", SEEDS)
def test_cameras_are_rigid_upright_in_the_room_and_move_smoothly(clips, seed):
    clip = clips[seed]
    rotation = clip.world_to_camera[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (12, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    assert (rotation[:, 1, 2] < -0.8).all(), "the camera's y axis points down in the world"
    for eye in eyes(clip):
        assert (eye > 0.3).all()
        assert (eye < ROOM - 0.3).all()
        for box in clip.boxes:
            assert np.linalg.norm(eye - np.clip(eye, box.lower, box.upper)) > 0.3
    steps = np.linalg.norm(np.diff(eyes(clip), axis=0), axis=1)
    assert steps.min() > 0.3, "twelve frames go round a good part of the room"
    assert steps.max() < 1.5


@pytest.mark.parametrize("seed", range(8))
def test_boxes_stand_apart_on_the_floor_and_are_seen(seed):
    clip = render_room(6, (48, 64), seed)
    for i, box in enumerate(clip.boxes):
        assert box.lower[2] == pytest.approx(0)
        assert (box.upper < ROOM).all()
        assert (clip.instance == i).any(axis=(1, 2)).sum() >= 3
        for other in clip.boxes[i + 1 :]:
            gap = np.maximum(box.lower - other.upper, other.lower - box.upper)[:2]
            assert gap.max() > 0.1
    assert (clip.instance >= 0).mean() > 0.08


def test_colours_stand_in_random_places():
    reds = [render_room(1, (16, 16), seed).boxes[0].centre for seed in range(12)]
    assert len({(round((x - ROOM[0] / 2) / 1.25), bool(y > ROOM[1] / 2)) for x, y, _ in reds}) >= 4, "of six places"


def test_boxes_have_their_named_colours(clips):
    clip = clips[1]
    for i, box in enumerate(clip.boxes):
        seen = clip.frames[clip.instance == i].mean(axis=0)
        names = {other.name: np.dot(seen, other.colour) / np.linalg.norm(other.colour) for other in clip.boxes}
        assert max(names, key=names.__getitem__) == box.name


def test_the_seed_decides_everything():
    one, again, other = (render_room(3, (32, 48), seed) for seed in (5, 5, 6))
    assert np.array_equal(one.frames, again.frames)
    assert np.array_equal(one.depth, again.depth)
    assert np.array_equal(one.world_to_camera, again.world_to_camera)
    assert one.boxes == again.boxes
    assert one.boxes != other.boxes
    assert not np.array_equal(one.world_to_camera, other.world_to_camera)


def test_more_frames_sample_the_same_path():
    few, many = render_room(3, (16, 16), 4), render_room(5, (16, 16), 4)
    np.testing.assert_allclose(few.world_to_camera, many.world_to_camera[::2], atol=1e-12)


def test_geometry_file_holds_the_clip(clips, tmp_path):
    clip = clips[2]
    path = tmp_path / "new" / "room.geometry"
    save_geometry(clip, path)
    with np.load(path) as saved:
        for name in ("depth", "world_to_camera", "intrinsics", "instance"):
            np.testing.assert_array_equal(saved[name], getattr(clip, name))
        assert saved["box_names"].tolist() == [box.name for box in clip.boxes]
        np.testing.assert_array_equal(saved["box_centres"], [box.centre for box in clip.boxes])
        np.testing.assert_array_equal(saved["box_sizes"], [box.size for box in clip.boxes])


def test_wrong_settings_are_all_named():
    with pytest.raises(SettingsError, match=r"frames is 0.*size is \(8, 64\).*seed is -1"):
        render_room(0, (8, 64), -1)


def from_pixels(clip: RoomClip, question: Question) -> tuple[str, float]:
    """The answer and its margin, from masks and depth alone."""
    words = question.text.replace(",", "").replace("?", "").split()
    one, two = (word for word in words if word in {box.name for box in clip.boxes})
    frame = question.frames[0]
    masks = [clip.instance[frame] == [box.name for box in clip.boxes].index(name) for name in (one, two)]
    if "left" in words:
        columns = [np.nonzero(mask)[1].mean() for mask in masks]
        return ("yes" if columns[0] < columns[1] else "no"), abs(columns[0] - columns[1])
    v, u = np.indices(clip.instance.shape[1:])
    k = clip.intrinsics
    slope = np.sqrt(((u - k[0, 2]) / k[0, 0]) ** 2 + ((v - k[1, 2]) / k[1, 1]) ** 2 + 1)
    distances = [np.median((slope * clip.depth[frame])[mask]) for mask in masks]
    return (one if distances[0] < distances[1] else two), abs(distances[0] - distances[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_agree_with_the_pixels(clips, seed):
    clip = clips[seed]
    for question in ask(clip, 6, seed, 40):
        answer, margin = from_pixels(clip, question)
        assert question.answer == answer, question
        assert margin > (5 if question.answer in ("yes", "no") else 0.25), question


def test_left_is_asked_only_where_it_is_plain(clips):
    centres = {box.name: np.array([box.centre]) for box in clips[0].boxes}
    questions = [question for question in ask(clips[0], 4, 0, 60) if "left" in question.text]
    assert len(questions) == 30
    for question in questions:
        one, two = (word for word in question.text.split() if word in centres)
        gap = [project(clips[0], question.frames[0], centres[name])[0].item() for name in (one, two)]
        assert abs(gap[0] - gap[1]) > 0.1 * 128


@pytest.mark.parametrize("count", [16, 17, 19])
def test_questions_are_balanced_distinct_and_spread(clips, count):
    clip = clips[1]
    questions = ask(clip, 4, 7, count)
    assert len(set(questions)) == len(questions) == count
    answers = Counter(question.answer for question in questions)
    assert abs(answers["yes"] - answers["no"]) <= 1
    near = [question for question in questions if "nearer" in question.text]
    assert abs(2 * len(near) - count) <= 1
    first = sum(question.text.index(question.answer) < question.text.index(" or ") for question in near)
    assert abs(2 * first - len(near)) <= 1
    windows = Counter(question.frames for question in questions)
    assert len(windows) >= 4
    assert max(windows.values()) <= 6
    assert all(b - a == 4 and a >= 0 and b <= 12 for a, b in windows)


def test_questions_repeat_by_seed(clips):
    assert ask(clips[0], 6, 3, 12) == ask(clips[0], 6, 3, 12)
    assert ask(clips[0], 6, 3, 12) != ask(clips[0], 6, 4, 12)


def test_one_window_may_be_the_whole_clip(clips):
    assert {question.frames for question in ask(clips[0], 12, 0, 4)} == {(0, 12)}


@pytest.mark.parametrize(
    ("window", "count", "message"),
    [
        (0, 4, "window is 0: the clip has 12 frames"),
        (13, 4, "window is 13: the clip has 12 frames"),
        (6, 0, "count is 0"),
        (12, 1000, r"allow only \d+\. Ask for fewer"),
    ],
)
def test_impossible_questions(clips, window, count, message):
    with pytest.raises(SettingsError, match=message):
        ask(clips[0], window, 0, count)
