"""Charts, drawn with Pillow: dots with intervals, lines, heat maps, scatter plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..demo.pictures import heat_colours
from ..files import write_atomically
from .intervals import Interval

Colour = tuple[int, int, int]
INK, FAINT, RULE, PAPER = (25, 25, 25), (110, 110, 110), (222, 222, 222), (255, 255, 255)
#: Told apart by people who do not see all colours too (after Okabe and Ito).
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
_FINE = 2  # drawn larger, then scaled down, so that slanted lines are smooth
_PAD = 16


class Canvas:
    """A white sheet. Coordinates are pixels of the finished picture.

    Args:
        width, height: of the finished picture.
    """

    def __init__(self, width: float, height: float) -> None:
        self.size = (math.ceil(width), math.ceil(height))
        self._image = Image.new("RGB", (self.size[0] * _FINE, self.size[1] * _FINE), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, x: float, y: float, text: str, ink: Colour = INK, size: int = 13, anchor: str = "lm", bold: bool = False
    ) -> None:
        """Text whose anchor (as Pillow names it) lies at (x, y)."""
        stroke = 1 if bold else 0
        self._draw.text((x * _FINE, y * _FINE), text, ink, _font(size), anchor, stroke_width=stroke, stroke_fill=ink)

    def line(self, points: Sequence[tuple[float, float]], ink: Colour, width: float = 1) -> None:
        """A line through points."""
        self._draw.line([(x * _FINE, y * _FINE) for x, y in points], ink, round(width * _FINE), joint="curve")

    def dot(self, x: float, y: float, ink: Colour, radius: float = 4, hollow: bool = False) -> None:
        """A disc, or a ring."""
        x, y, r = x * _FINE, y * _FINE, radius * _FINE
        self._draw.ellipse((x - r, y - r, x + r, y + r), PAPER if hollow else ink, ink, 2 * _FINE if hollow else 0)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour | None, ink: Any = None) -> None:
        """A rectangle."""
        corners = [(left * _FINE, top * _FINE), (right * _FINE - 1, bottom * _FINE - 1)]
        self._draw.rectangle(corners, fill, ink, 2 * _FINE if ink else 0)

    def paste(self, image: Image.Image, x: float, y: float) -> None:
        """Another picture, its top left corner at (x, y)."""
        scaled = image.resize((image.width * _FINE, image.height * _FINE), Image.Resampling.NEAREST)
        self._image.paste(scaled, (round(x * _FINE), round(y * _FINE)))

    def picture(self) -> Image.Image:
        """The finished picture."""
        return self._image.resize(self.size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class DotRow:
    """A row of a dot chart. Attributes: ``label``; ``values``, one for each panel; ``strong``, drawn in colour;
    ``heading``, a row of text alone."""

    label: str
    values: Sequence[Interval] = ()
    strong: bool = False
    heading: bool = False


@dataclass(frozen=True)
class Series:
    """A line of a line chart, or the points of a scatter plot. Attributes: ``label``; ``values`` by place on the x
    axis, unknown ones NaN; ``strong``, drawn in colour."""

    label: str
    values: Sequence[Interval]
    strong: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A grid of numbers. Attributes: ``title``; ``values`` ``[rows][columns]``, NaN for none; ``marked``, cells
    (row, column) that get a frame; ``best``, the one that gets a strong frame."""

    title: str
    values: Sequence[Sequence[float]]
    marked: Sequence[tuple[int, int]] = ()
    best: tuple[int, int] | None = None


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot. Attributes: ``x``, ``y``; ``label``; ``group``, which colour it has."""

    x: float
    y: float
    label: str
    group: int = 0


@dataclass(frozen=True)
class _Axis:
    """A scale from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return ticks(self.low, self.high)


def dot_chart(title: str, panels: Sequence[str], rows: Sequence[DotRow], notes: Sequence[str] = ()) -> Image.Image:
    """Rows of dots with their intervals, one column for each figure, on scales of their own.

    Args:
        title: at the top.
        panels: names of the figures.
        rows: from top to bottom.
        notes: lines below.
    """
    left = _PAD + max((_width(row.label) for row in rows), default=0) + 24
    panel, line, top = 210, 22, 84
    width = max(left + len(panels) * panel + _PAD, 640)
    lines = [piece for note in notes for piece in wrapped(note, width - 2 * _PAD, 12)]
    bottom = top + line * len(rows)
    canvas = Canvas(width, bottom + 34 + 17 * len(lines) + _PAD)
    canvas.text(_PAD, 26, title, size=17)
    for number, name in enumerate(panels):
        start = left + number * panel
        found = [row.values[number] for row in rows if not row.heading]
        axis = _Axis(*_limits(found), start, start + panel - 34)
        canvas.text(start, 58, name, bold=True)
        for tick in axis.ticks():
            canvas.line([(axis.at(tick), top - 8), (axis.at(tick), bottom)], RULE)
            canvas.text(axis.at(tick), bottom + 10, f"{tick:g}", FAINT, 11, "mm")
        for index, row in enumerate(rows):
            if not row.heading:
                _dotted(canvas, axis, row.values[number], top + line * (index + 0.5), row.strong)
    for index, row in enumerate(rows):
        ink = INK if row.strong or row.heading else FAINT
        canvas.text(_PAD, top + line * (index + 0.5), row.label, ink, bold=row.heading)
    for index, text in enumerate(lines):
        canvas.text(_PAD, bottom + 38 + 17 * index, text, FAINT, 12)
    return canvas.picture()


def line_chart(
    title: str, places: Sequence[str], series: Sequence[Series], below: str = "", beside: str = ""
) -> Image.Image:
    """Lines over named places, with intervals where they are known.

    Args:
        title: at the top.
        places: names along the x axis.
        series: the lines.
        below: what the x axis is.
        beside: what the y axis is.
    """
    legend = max((_width(each.label, 12) for each in series), default=0) + 56
    width, height, left, top = 520 + legend, max(360, 130 + 16 * len(series)), 60, 76
    right, bottom = width - legend, height - 56
    canvas = Canvas(width, height)
    axis = _Axis(*_limits([value for each in series for value in each.values]), bottom, top)
    canvas.text(_PAD, 26, title, size=17)
    canvas.text(_PAD, 56, beside, FAINT, 12)
    for tick in axis.ticks():
        canvas.line([(left, axis.at(tick)), (right, axis.at(tick))], RULE)
        canvas.text(left - 8, axis.at(tick), f"{tick:g}", FAINT, 11, "rm")
    step = (right - left) / max(1, len(places))
    for index, place in enumerate(places):
        canvas.text(left + step * (index + 0.5), bottom + 16, place, FAINT, 12, "mm")
    canvas.text((left + right) / 2, bottom + 38, below, FAINT, 12, "mm")
    ends = []
    for each, ink in zip(series, _colours(series), strict=True):
        placed = [(left + step * (index + 0.5), value) for index, value in enumerate(each.values)]
        points = [(x, axis.at(value.value), value) for x, value in placed if not math.isnan(value.value)]
        canvas.line([(x, y) for x, y, _ in points], ink, 2 if each.strong else 1.2)
        for x, y, value in points:
            if each.strong and value.is_known:
                canvas.line([(x, axis.at(value.low)), (x, axis.at(value.high))], ink, 1.5)
            canvas.dot(x, y, ink, 4 if each.strong else 3, hollow=not each.strong)
        if points:
            ends.append((points[-1], each, ink))
    # Each line's name at its end; those that would lie on each other are moved apart.
    spread = _apart([y for (_, y, _), _, _ in ends], 15, top, bottom)
    for ((x, y, _), each, ink), at in zip(ends, spread, strict=True):
        canvas.line([(x + 7, y), (right + 10, at), (right + 18, at)], ink if each.strong else RULE)
        canvas.text(right + 22, at, each.label, ink if each.strong else FAINT, 12)
    return canvas.picture()


def heat_chart(
    title: str,
    maps: Sequence[HeatMap],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_title: str = "",
    column_title: str = "",
    notes: Sequence[str] = (),
) -> Image.Image:
    """Heat maps of one grid side by side, each with its own colours from its lowest to its highest number.

    Args:
        title: at the top.
        maps: with ``values[row][column]``.
        rows, columns: names of the grid's lines.
        row_title, column_title: what these are.
        notes: lines below.
    """
    cell, height = max(52, *(_width(name, 12) + 14 for name in columns)), 30
    left = _PAD + max(_width(name, 12) for name in [*rows, row_title]) + 14
    block = left + cell * len(columns) + 24
    width = max(block * len(maps) + _PAD, 560)
    lines = [piece for note in notes for piece in wrapped(note, width - 2 * _PAD, 12)]
    top = 104
    bottom = top + height * len(rows)
    canvas = Canvas(width, bottom + 24 + 17 * len(lines) + _PAD)
    canvas.text(_PAD, 26, title, size=17)
    for number, each in enumerate(maps):
        x = block * number + left
        canvas.text(x, 56, each.title, bold=True)
        canvas.text(x - 10, top - 14, row_title, FAINT, 12, "rm")
        canvas.text(x + cell * len(columns) / 2, top - 32, column_title, FAINT, 12, "mm")
        for index, name in enumerate(columns):
            canvas.text(x + cell * (index + 0.5), top - 14, name, INK, 12, "mm")
        _cells(canvas, each, rows, (x, top), (cell, height))
    for index, text in enumerate(lines):
        canvas.text(_PAD, bottom + 26 + 17 * index, text, FAINT, 12)
    return canvas.picture()


def scatter_chart(
    title: str,
    points: Sequence[Point],
    below: str,
    beside: str,
    groups: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """Labelled points on two scales.

    Args:
        title: at the top.
        points: with labels and groups.
        below, beside: what the x and the y axis are.
        groups: names of the groups, where there are several.
        notes: lines below.
    """
    width, left, top, bottom = 720, 70, 92, 420
    right = width - 40
    lines = [piece for note in notes for piece in wrapped(note, width - 2 * _PAD, 12)]
    canvas = Canvas(width, bottom + 62 + 17 * len(lines) + _PAD)
    canvas.text(_PAD, 26, title, size=17)
    canvas.text(_PAD, 62, beside, FAINT, 12)
    across = _Axis(*_limits([Interval(point.x) for point in points]), left, right)
    upward = _Axis(*_limits([Interval(point.y) for point in points]), bottom, top)
    for tick in across.ticks():
        canvas.line([(across.at(tick), top), (across.at(tick), bottom)], RULE)
        canvas.text(across.at(tick), bottom + 14, f"{tick:g}", FAINT, 11, "mm")
    for tick in upward.ticks():
        canvas.line([(left, upward.at(tick)), (right, upward.at(tick))], RULE)
        canvas.text(left - 8, upward.at(tick), f"{tick:g}", FAINT, 11, "rm")
    canvas.text((left + right) / 2, bottom + 38, below, FAINT, 12, "mm")
    taken: list[tuple[float, float, float, float]] = []
    for point in points:
        x, y = across.at(point.x), upward.at(point.y)
        canvas.dot(x, y, COLOURS[point.group % len(COLOURS)], 5)
        _label(canvas, point.label, x, y, right, taken)
    for index, name in enumerate(groups if len(groups) > 1 else ()):
        canvas.dot(right - 150, 30 + 18 * index, COLOURS[index % len(COLOURS)], 4)
        canvas.text(right - 140, 30 + 18 * index, name, INK, 12)
    for index, text in enumerate(lines):
        canvas.text(_PAD, bottom + 64 + 17 * index, text, FAINT, 12)
    return canvas.picture()


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, on white."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def save(picture: Image.Image, path: str | Path) -> Image.Image:
    """Write a PNG, whole or not at all; return the picture."""
    write_atomically(Path(path), lambda temporary: picture.save(temporary, format="PNG"))
    return picture


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` and one."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def wrapped(text: str, width: float, size: int = 13) -> list[str]:
    """Lines of at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _apart(places: Sequence[float], least: float, top: float, bottom: float) -> list[float]:
    """Places moved so far that neighbours are ``least`` apart, within bounds where that is possible."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    edge = top - least
    for index in order:
        edge = moved[index] = max(moved[index], edge + least)
    edge = bottom + least
    for index in reversed(order):
        edge = moved[index] = min(moved[index], edge - least)
    return moved


def _dotted(canvas: Canvas, axis: _Axis, value: Interval, y: float, strong: bool) -> None:
    if math.isnan(value.value):
        canvas.text(axis.start, y, "none", FAINT, 11)
        return
    ink = COLOURS[0] if strong else FAINT
    if value.is_known:
        canvas.line([(axis.at(value.low), y), (axis.at(value.high), y)], ink, 2 if strong else 1.5)
    canvas.dot(axis.at(value.value), y, ink, 4.5 if strong else 3.5, hollow=not strong)


def _cells(
    canvas: Canvas, heat: HeatMap, rows: Sequence[str], corner: tuple[float, float], size: tuple[float, float]
) -> None:
    (x, top), (cell, height) = corner, size
    values = np.array(heat.values, dtype=np.float64)
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    colours = heat_colours(np.nan_to_num(scaled))
    for row, name in enumerate(rows):
        y = top + height * row
        canvas.text(x - 10, y + height / 2, name, INK, 12, "rm")
        for column in range(values.shape[1]):
            left = x + cell * column
            value = values[row, column]
            known_here = not np.isnan(value)
            fill = _rgb(colours[row, column]) if known_here else PAPER
            canvas.box(left, y, left + cell, y + height, fill)
            ink = PAPER if sum(fill) < 3 * 118 else INK
            text = f"{value:.3f}" if known_here else "-"
            canvas.text(left + cell / 2, y + height / 2, text, ink, 12, "mm")
    for row, column in heat.marked:
        _frame(canvas, x, top, cell, height, row, column, INK)
    if heat.best is not None:
        _frame(canvas, x, top, cell, height, *heat.best, (214, 39, 40))


def _rgb(values: Any) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _frame(
    canvas: Canvas, x: float, top: float, cell: float, height: float, row: int, column: int, ink: Colour
) -> None:
    left, y = x + cell * column, top + height * row
    canvas.box(left + 2, y + 2, left + cell - 2, y + height - 2, None, ink)


def _label(
    canvas: Canvas, text: str, x: float, y: float, right: float, taken: list[tuple[float, float, float, float]]
) -> None:
    """A point's name beside it, above or below where others are in the way."""
    width = _width(text, 11)
    places = [
        (x + 9, y, "lm"),
        (x - 9, y, "rm"),
        (x, y - 13, "mm"),
        (x, y + 13, "mm"),
        (x + 9, y - 12, "lm"),
        (x + 9, y + 12, "lm"),
    ]
    for at_x, at_y, anchor in places:
        start = {"l": at_x, "r": at_x - width, "m": at_x - width / 2}[anchor[0]]
        box = (start, at_y - 7, start + width, at_y + 7)
        if box[2] < right + 30 and not any(_overlap(box, other) for other in taken):
            break
    else:
        at_x, at_y, anchor = places[0]
        box = (at_x, at_y - 7, at_x + width, at_y + 7)
    taken.append(box)
    canvas.text(at_x, at_y, text, INK, 11, anchor)


def _overlap(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _colours(series: Sequence[Series]) -> list[Colour]:
    """Strong ones have colours of their own, the others shades of grey."""
    strong = iter(COLOURS * len(series))
    greys = [90 + 25 * k % 120 for k in range(len(series))]
    return [next(strong) if each.strong else (grey, grey, grey) for each, grey in zip(series, greys, strict=True)]


def _limits(values: Sequence[Interval]) -> tuple[float, float]:
    numbers = [n for v in values for n in (v.value, v.low, v.high) if not math.isnan(n)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    margin = (high - low) * 0.06 or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size * _FINE)


def _width(text: str, size: int = 13) -> float:
    return float(_font(size).getlength(text)) / _FINE
