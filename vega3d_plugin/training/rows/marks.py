"""Marks of SPAR's rows: the points and boxes that a question speaks of, drawn on its pictures.

A question says "the shelf (blue point)", and ``spar_info`` of its row where that point is. It is drawn on the full-size
picture when that is read; without it the question has no answer. Source of types, colours and sizes:
``src/qwen_vl/data/draw_marker.py`` of VG-LLM and of VEGA-3D's branch spatial-reasoning, which draws labels with OpenCV:
here they are in Pillow's font, of about that size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ...contracts.documents import DocumentError, parse_json
from ...contracts.errors import RowError, near_misses
from ...contracts.printable import brief

#: Coordinates are so many parts of width and height.
PER_MILLE = 1000
RADIUS = 20
WIDTH = 20
#: A box grows by this before it is drawn, so that its line lies around what it marks.
MARGIN = WIDTH * 7 / 8
#: Of labelled boxes, whose line has its middle at 20 pixels from the box.
LABEL_MARGIN = 20 + WIDTH // 2
FONT_SIZE = 66
_FAR = 100 * PER_MILLE
Color = tuple[int, int, int]
_COLORS: dict[str, Color] = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0), "yellow": (255, 255, 0)}

#: Marks by type. ``red_bbox@2``: the key of the box, in the picture that ``bbox_img_idx`` names third. Without ``@``:
#: in the first picture.
TYPES: dict[str, str] = {
    "appearance_order": "",
    "camera_motion_infer": "",
    "depth_prediction_oc": "red_point blue_point",
    "depth_prediction_oc_mv": "red_point@0 blue_point@1",
    "depth_prediction_oo": "red_point blue_point green_point",
    "depth_prediction_oo_mv": "red_point@0 blue_point@1 green_point@2",
    "distance_infer_center_oc": "",
    "distance_infer_center_oc_mv": "",
    "distance_infer_center_oo": "red_point blue_point green_point",
    "distance_infer_center_oo_mv": "red_point@0 green_point@1 blue_point@2",
    "distance_prediction_oc": "red_point",
    "distance_prediction_oc_mv": "red_point@0",
    "distance_prediction_oo": "red_point blue_point",
    "distance_prediction_oo_mv": "red_point@0 blue_point@1",
    "distance_prediction_oo_video": "red_point@0 blue_point@1",
    "nav": "",
    "obj_count": "",
    "obj_frame_locate": "red_bbox@0",
    "obj_spatial_relation_oo": "red_bbox blue_bbox",
    "position_matching": "red_bbox",
    "room_size": "",
    "spatial_imagination_oc": "red_bbox blue_bbox green_bbox",
    "spatial_imagination_oc_mv": "red_bbox@2 green_bbox@0 blue_bbox@1",
    "spatial_imagination_oc_video_hard": "",
    "spatial_imagination_oo": "red_bbox blue_bbox green_bbox yellow_bbox",
    "spatial_imagination_oo_mv": "red_bbox@2 green_bbox@0 blue_bbox@1 yellow_bbox@3",
    "spatial_imagination_oo_video_hard": "",
    "spatial_volume_infer": "red_bbox",
    "view_change_infer": "",
}
#: Types whose marks depend on what the row has, or that carry labels.
SPECIAL = (
    "distance_infer_center_oo_video",
    "obj_spatial_relation_oc_mv",
    "obj_spatial_relation_oo_mv",
    "spatial_imagination_map_mv",
    "spatial_imagination_oc_video",
    "spatial_imagination_oo_video",
)
#: Of these, boxes are drawn where the row has them.
_ANY_BOX = ("red_bbox", "blue_bbox", "green_bbox")
#: Boxes of the labelled video types in order, with the colour that the released code's mix of RGB and BGR gives: the
#: "yellow" one comes out as cyan.
_LABELLED: dict[str, Color] = {
    "green_bbox": (0, 255, 0),
    "blue_bbox": (0, 0, 255),
    "red_bbox": (255, 0, 0),
    "yellow_bbox": (0, 225, 225),
}


@dataclass(frozen=True)
class Mark:
    """A point or a box on a picture.

    Attributes:
        at: x, y of a point, or left, top, right, bottom of a box; per mille of width and height.
        color: RGB.
        label: text beside it.
        label_color: of the text, RGB.
        plate: a plate in the mark's colour behind the text.
    """

    at: tuple[float, ...]
    color: Color
    label: str | None = None
    label_color: Color = (255, 255, 255)
    plate: bool = False

    def draw(self, picture: Image.Image) -> None:
        """Draw it, as large on every picture.

        Raises:
            RowError: it lies outside the picture, or is a box whose sides are crossed.
        """
        sides = (picture.width, picture.height)
        at = [value / PER_MILLE * sides[i % 2] for i, value in enumerate(self.at)]
        (self._point if len(at) == 2 else self._box)(picture, at)

    def _point(self, picture: Image.Image, at: Sequence[float]) -> None:
        x, y = map(int, at)
        reach = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
        self._check_seen(picture, reach)
        pen = ImageDraw.Draw(picture)
        pen.ellipse(reach, fill=self.color)
        if self.label is not None:
            # Moved to the left where it would lose its number at the picture's edge.
            wide = pen.textbbox((0, 0), self.label, _font(), anchor="ls", stroke_width=2)[2]
            left = max(0, min(x + RADIUS, picture.width - int(wide)))
            pen.text((left, y + RADIUS), self.label, self.label_color, _font(), anchor="ls", stroke_width=2)

    def _box(self, picture: Image.Image, at: Sequence[float]) -> None:
        if at[2] < at[0] or at[3] < at[1]:
            raise RowError(f"spar_info: a box must be left, top, right, bottom, found {list(self.at)}")
        pen = ImageDraw.Draw(picture)
        if self.label is None:
            left, top, right, bottom = (int(v + (MARGIN if i > 1 else -MARGIN)) for i, v in enumerate(at))
            self._check_seen(picture, (left, top, right, bottom))
            pen.rectangle((left, top, right, bottom), outline=self.color, width=WIDTH)
            return
        left, top, right, bottom = (int(v) + (LABEL_MARGIN if i > 1 else -LABEL_MARGIN) for i, v in enumerate(at))
        self._check_seen(picture, (left, top, right, bottom))
        pen.rounded_rectangle((left, top, right, bottom), WIDTH // 2, outline=self.color, width=WIDTH)
        self._write_below(pen, picture.height, int(at[2]), int(at[3]))

    def _write_below(self, pen: ImageDraw.ImageDraw, height: int, right: int, bottom: int) -> None:
        """The label at the box's lower right corner; where that is below the picture, inside the box."""
        font, text = _font(), self.label or ""
        _, up, wide, _ = pen.textbbox((0, 0), text, font, anchor="ls", stroke_width=2)
        tall = -int(up)
        x, y = max(0, right - int(wide)), bottom + tall
        if y > height:
            y = bottom - (5 if self.plate else tall)
        if self.plate:
            pen.rectangle((x, y - tall, x + int(wide), y + 5), fill=self.color)
        pen.text((x, y), text, self.label_color, font, anchor="ls", stroke_width=2)

    def _check_seen(self, picture: Image.Image, reach: tuple[int, int, int, int]) -> None:
        if reach[2] < 0 or reach[3] < 0 or reach[0] >= picture.width or reach[1] >= picture.height:
            raise RowError(
                f"spar_info: the mark at {list(self.at)} per mille lies outside its picture of "
                f"{picture.width}x{picture.height}"
            )


def read_marks(value: Any, pictures: int) -> dict[int, tuple[Mark, ...]]:
    """What is to be drawn on which picture of a row.

    Args:
        value: ``spar_info``: a mapping, or the JSON text of one, with ``type``, points, boxes and the numbers of
            their pictures.
        pictures: how many the row has.

    Returns:
        Marks by the picture's place, in the order of drawing. Types without marks (``room_size``, ...) give none.

    Raises:
        RowError: an unknown type, a key that the type needs and the row lacks, a picture that is not there.
    """
    info = _parsed(value)
    kind = info.get("type")
    if not isinstance(kind, str) or (kind not in TYPES and kind not in SPECIAL):
        known = [*TYPES, *SPECIAL]
        close = near_misses(str(kind), known)
        raise RowError(
            f"spar_info: the type {brief(kind)} is unknown, so its marks cannot be drawn."
            f"{close or ' Known: ' + ', '.join(sorted(known))}"
        )
    found: dict[int, tuple[Mark, ...]] = {}
    reader = _Info(info, kind, pictures)
    for place, mark in reader.marks():
        found[place] = (*found.get(place, ()), mark)
    return found


class _Info:
    """``spar_info`` of one row."""

    def __init__(self, info: Mapping[str, Any], kind: str, pictures: int) -> None:
        self.info, self.kind, self.pictures = info, kind, pictures

    def marks(self) -> Iterator[tuple[int, Mark]]:
        if self.kind == "spatial_imagination_map_mv":
            for i, at in enumerate(self._list("bbox_list")):
                # Blue, since the released code gives OpenCV's red to a picture in RGB.
                mark = Mark(self._numbers("bbox_list", at, 4), (0, 0, 255), f"object{i}", (0, 255, 0))
                yield self._picture("bbox_img_idx", i), mark
        elif self.kind == "distance_infer_center_oo_video":
            for i, at in enumerate(self._list("point_list")):
                label = f"object{i - 1}" if i else "objectA"
                yield (
                    self._picture("point_img_idx", i),
                    Mark(self._numbers("point_list", at, 2), (0, 0, 255), label, (0, 255, 0)),
                )
        elif self.kind in ("spatial_imagination_oo_video", "spatial_imagination_oc_video"):
            keys = list(_LABELLED)[: 4 if "_oo_" in self.kind else 3]
            for i, key in enumerate(keys):
                mark = Mark(self._at(key), _LABELLED[key], f"object{i}", plate=True)
                yield self._picture("bbox_img_idx", i), mark
        else:
            yield from map(self._plain, self._words())

    def _words(self) -> list[str]:
        if self.kind in TYPES:
            words = TYPES[self.kind].split()
            if self.pictures != 1 and any("@" not in word for word in words) and self.kind != "position_matching":
                raise RowError(f"spar_info: {self.kind} is about one picture, but the row has {self.pictures}")
            return words
        boxes = [key for key in _ANY_BOX if self.info.get(key)]
        if self.kind == "obj_spatial_relation_oc_mv":
            if not boxes:
                raise RowError(f"spar_info: {self.kind} needs one of {', '.join(_ANY_BOX)}")
            return [f"{key}@0" for key in boxes]
        if len(boxes) != 2:
            raise RowError(f"spar_info: {self.kind} needs two of {', '.join(_ANY_BOX)}, found {len(boxes)}")
        return [f"{key}@{i}" for i, key in enumerate(boxes)]

    def _plain(self, word: str) -> tuple[int, Mark]:
        key, _, place = word.partition("@")
        color, _, shape = key.partition("_")
        picture = self._picture(f"{shape}_img_idx", int(place)) if place else self._checked("picture", 0)
        return picture, Mark(self._at(key), _COLORS[color])

    def _at(self, key: str) -> tuple[float, ...]:
        return self._numbers(key, self._first(key), 4 if key.endswith("bbox") else 2)

    def _numbers(self, key: str, value: Any, count: int) -> tuple[float, ...]:
        if isinstance(value, Sequence) and len(value) == count and all(map(_is_place, value)):
            return tuple(map(float, value))
        raise RowError(f"spar_info: `{key}` must be {count} numbers per mille, found {brief(value)}")

    def _first(self, key: str) -> Any:
        """Everything is wrapped into a list of one."""
        value = self.info.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise RowError(f"spar_info: {self.kind} needs `{key}`, found {brief(value)}")
        return value[0]

    def _list(self, key: str) -> Sequence[Any]:
        value = self._first(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise RowError(f"spar_info: `{key}` must hold a list, found {brief(value)}")
        return value

    def _picture(self, key: str, place: int) -> int:
        numbers = self._list(key)
        if place >= len(numbers):
            raise RowError(f"spar_info: `{key}` names {len(numbers)} pictures, {self.kind} needs {place + 1}")
        return self._checked(key, numbers[place])

    def _checked(self, key: str, number: Any) -> int:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < self.pictures:
            raise RowError(f"spar_info: `{key}` names picture {brief(number)}, but the row has {self.pictures}")
        return number


def draw_marks(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """The picture with its marks; the one that was given stays as it is.

    Raises:
        RowError: see :meth:`Mark.draw`.
    """
    marked = picture.copy() if marks else picture
    for mark in marks:
        mark.draw(marked)
    return marked


def _parsed(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except DocumentError as error:
            raise RowError(f"spar_info is no JSON: {error}".rstrip(".")) from None
    if not isinstance(value, Mapping):
        raise RowError(f"spar_info must be an object, or its JSON text, found {type(value).__name__}")
    return value


def _is_place(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= _FAR
        and math.isfinite(float(value))
    )


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        font = ImageFont.load_default(FONT_SIZE)
    except (ImportError, OSError) as error:
        font = error  # type: ignore[assignment]
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RowError("spar_info: labels cannot be written, since this Pillow comes without FreeType")
    return font
