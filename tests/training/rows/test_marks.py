"""Marks of SPAR's rows: every type draws, labels are written, and what cannot be drawn is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vega3d_plugin.contracts.errors import RowError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.rows.conversation import read_conversation
from vega3d_plugin.training.rows.marks import SPECIAL, TYPES, draw_marks, read_marks
from vega3d_plugin.training.rows.media import load_image

RED, BLUE, GREEN, YELLOW = (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 0)
LIME, CYAN = (0, 255, 0), (0, 225, 225)
SIZE = (800, 600)
INFO: dict[str, Any] = {
    "red_point": [[200, 200]],
    "blue_point": [[700, 200]],
    "green_point": [[400, 800]],
    "red_bbox": [[100, 100, 300, 300]],
    "blue_bbox": [[600, 100, 800, 300]],
    "green_bbox": [[100, 600, 300, 800]],
    "yellow_bbox": [[600, 600, 800, 800]],
    "point_list": [[[200, 200], [700, 200], [400, 800]]],
    "bbox_list": [[[100, 100, 300, 300], [600, 600, 800, 800]]],
    "point_img_idx": [[0, 1, 2]],
    "bbox_img_idx": [[0, 1, 2, 3]],
}


def drawn(kind: str, pictures: int, **changed: Any) -> list[Image.Image]:
    marks = read_marks(json.dumps({**INFO, **changed, "type": kind}), pictures)
    return [draw_marks(Image.new("RGB", SIZE), marks.get(i, ())) for i in range(pictures)]


def colors(picture: Image.Image) -> set[tuple[int, ...]]:
    """Colours of large areas."""
    found = picture.getcolors(1 << 20)
    assert found is not None
    return {color for count, color in found if count > 500 and color != (0, 0, 0)}  # type: ignore[misc]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_draws_what_it_says(kind: str) -> None:
    several = "@" in TYPES[kind]
    pictures = drawn(kind, 4 if several else 1)
    found = set().union(*map(colors, pictures))
    words = {"red": RED, "blue": BLUE, "green": GREEN, "yellow": YELLOW}
    assert found == {words[word.partition("_")[0]] for word in TYPES[kind].split()}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("spatial_imagination_oo_mv", [{GREEN}, {BLUE}, {RED}, {YELLOW}]),
        ("distance_infer_center_oo_mv", [{RED}, {GREEN}, {BLUE}, set()]),
        ("position_matching", [{RED}, set(), set(), set()]),
        ("obj_spatial_relation_oc_mv", [{RED, BLUE, GREEN}, set(), set(), set()]),
        # The released code's colours: of RGB and BGR mixed.
        ("distance_infer_center_oo_video", [{BLUE, LIME}, {BLUE, LIME}, {BLUE, LIME}, set()]),
        ("spatial_imagination_map_mv", [{BLUE, LIME}, {BLUE, LIME}, set(), set()]),
        (
            "spatial_imagination_oo_video",
            [{LIME, (255,) * 3}, {BLUE, (255,) * 3}, {RED, (255,) * 3}, {CYAN, (255,) * 3}],
        ),
        ("spatial_imagination_oc_video", [{LIME, (255,) * 3}, {BLUE, (255,) * 3}, {RED, (255,) * 3}, set()]),
    ],
)
def test_each_mark_is_on_its_picture(kind: str, expected: list[set[tuple[int, ...]]]) -> None:
    assert [colors(picture) for picture in drawn(kind, 4)] == expected


@pytest.mark.parametrize(
    ("missing", "expected"), [("red", [BLUE, GREEN]), ("blue", [RED, GREEN]), ("green", [RED, BLUE])]
)
def test_a_relation_between_two_pictures_takes_the_two_boxes_there_are(
    missing: str, expected: list[tuple[int, ...]]
) -> None:
    pictures = drawn("obj_spatial_relation_oo_mv", 2, **{f"{missing}_bbox": None})
    assert [colors(picture) for picture in pictures] == [{color} for color in expected]


def test_labels_differ_so_that_objects_can_be_told_apart() -> None:
    first, second, _ = drawn("distance_infer_center_oo_video", 3, point_list=[[[500, 500]] * 3])
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_a_label_that_has_no_room_below_is_inside() -> None:
    low = drawn("spatial_imagination_map_mv", 1, bbox_list=[[[100, 600, 900, 990]]], bbox_img_idx=[[0]])[0]
    assert LIME in colors(low)


def test_a_label_keeps_its_number_at_the_edge() -> None:
    middle, edge = (
        np.asarray(drawn("distance_infer_center_oo_video", 1, point_list=[[[x, 500]]], point_img_idx=[[0]])[0])
        for x in (400, 990)
    )
    letters = [int((picture == LIME).all(axis=2).sum()) for picture in (middle, edge)]
    # The point may cover a letter, and a letter the point.
    assert letters[1] == letters[0]


def test_the_picture_given_stays_as_it_was() -> None:
    given = Image.new("RGB", SIZE)
    draw_marks(given, read_marks({**INFO, "type": "distance_prediction_oc"}, 1)[0])
    assert given.getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("info", "pictures", "words"),
    [
        ({"type": "depth_predictoin_oc"}, 1, r"'depth_predictoin_oc' is unknown.* Did you mean 'depth_prediction_oc'"),
        ({}, 1, "the type None is unknown"),
        ({"type": ["a"]}, 1, r"\['a'\] is unknown"),
        ({"type": "depth_prediction_oc", "red_point": [[1, 2]]}, 1, "needs `blue_point`, found None"),
        ({"type": "distance_prediction_oc", "red_point": [[1]]}, 1, "`red_point` must be 2 numbers per mille"),
        ({"type": "distance_prediction_oc", "red_point": [[1, "2"]]}, 1, "must be 2 numbers"),
        ({"type": "distance_prediction_oc", "red_point": [[1, float("nan")]]}, 1, "must be 2 numbers"),
        ({"type": "distance_prediction_oc", "red_point": [[1, 10**60]]}, 1, "must be 2 numbers"),
        ({"type": "spatial_volume_infer", "red_bbox": "abcd"}, 1, "needs `red_bbox`, found 'abcd'"),
        ({"type": "distance_prediction_oc", "red_point": [[1, 2]]}, 2, "about one picture, but the row has 2"),
        ({"type": "position_matching", "red_bbox": [[1, 2, 3, 4]]}, 0, "the row has 0"),
        ({**INFO, "type": "distance_infer_center_oo_mv"}, 2, "names picture 2, but the row has 2"),
        ({**INFO, "type": "distance_infer_center_oo_mv", "point_img_idx": [[0, -1, 1]]}, 2, "names picture -1"),
        ({**INFO, "type": "distance_infer_center_oo_mv", "point_img_idx": [[0, 1]]}, 2, "names 2 pictures, .* needs 3"),
        ({**INFO, "type": "obj_spatial_relation_oo_mv"}, 2, "needs two of .*, found 3"),
        ({"type": "obj_spatial_relation_oc_mv", "bbox_img_idx": [[0]]}, 1, "needs one of red_bbox"),
        ("{", 1, "spar_info is no JSON: line 1"),
        ("[" * 5000, 1, "spar_info is no JSON: .*nested deeper"),
        ("[]", 1, "must be an object, or its JSON text, found list"),
    ],
)
def test_marks_that_cannot_be_read_are_told(info: Any, pictures: int, words: str) -> None:
    with pytest.raises(RowError, match=words):
        read_marks(info, pictures)


def test_marks_that_cannot_be_seen_are_told() -> None:
    with pytest.raises(RowError, match=r"\[2000\.0, 5\.0\] per mille lies outside its picture of 800x600"):
        drawn("distance_prediction_oc", 1, red_point=[[2000, 5]])
    with pytest.raises(RowError, match="left, top, right, bottom"):
        drawn("spatial_volume_infer", 1, red_bbox=[[500, 0, 400, 9]])


def test_a_row_marks_its_images_in_their_order_and_no_video(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(tmp_path / name)
    turns = [{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "A."}]
    info = json.dumps({**INFO, "type": "depth_prediction_oc_mv", "point_img_idx": [[1, 0]]})
    row = {"images": ["a.png", "b.png"], "conversations": turns, "spar_info": info}
    media = read_conversation(row, DataSettings(files=("x",)), tmp_path).media
    assert [colors(load_image(medium)) for medium in media] == [{BLUE}, {RED}]
    video = {"video": ["a.png", "b.png"], "conversations": [{**turns[0], "value": "<video>?"}, turns[1]]}
    with pytest.raises(RowError, match="spar_info marks `images`"):
        read_conversation({**video, "spar_info": info}, DataSettings(files=("x",)), tmp_path)


def test_no_type_is_in_both_tables() -> None:
    assert not {*TYPES} & {*SPECIAL}
