"""What a page is made of. Plain values only: everything is escaped when the page is rendered."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import ClassVar, Literal

from PIL import Image

from ...contracts.errors import ReportError
from ...scenes.pixel_limits import opened_picture

#: Kinds of pictures that a page may hold, by Pillow's name.
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

Tone = Literal["good", "bad", "open", "note"]


class Block:
    """A part of a section. ``kind`` names the macro of the template that renders it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Prose(Block):
    """Paragraphs. Attributes: ``paragraphs``; ``small``, as a note."""

    paragraphs: Sequence[str]
    small: bool = False
    kind: ClassVar[str] = "prose"


@dataclass(frozen=True)
class Finding:
    """A sentence. Attributes: ``text``; ``tone``: ``good``, ``bad``, ``open`` (nothing was shown) or ``note``; ``tag``,
    the word that tells the tone, by default one that fits it."""

    text: str
    tone: Tone = "note"
    tag: str = ""

    @property
    def word(self) -> str:
        """What stands before the sentence."""
        return self.tag or {"good": "shown", "bad": "against", "open": "not shown", "note": "note"}[self.tone]


@dataclass(frozen=True)
class Findings(Block):
    """Sentences with their tones."""

    items: Sequence[Finding]
    kind: ClassVar[str] = "findings"


@dataclass(frozen=True)
class Card:
    """A figure on its own. Attributes: ``label``; ``value``; ``note``, such as its interval; ``tone``."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "note"


@dataclass(frozen=True)
class Cards(Block):
    """The figures that matter most, side by side."""

    items: Sequence[Card]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Table(Block):
    """A table, which scrolls sideways where the screen is narrow.

    Attributes:
        columns: their heads; the first column stays in view.
        rows: as many cells each; a cell of two lines is ``(main, below)``.
        strong: indices of rows that stand out.
        caption: what it is.
        numeric: whether all but the first column hold numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    strong: Sequence[int] = ()
    caption: str = ""
    numeric: bool = True
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class DotRow:
    """A row of a dot chart. Attributes: ``label``; ``value``, NaN for none; ``low``, ``high``, ends of its interval,
    NaN for none; ``strong``; ``heading``, a row of text alone."""

    label: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    strong: bool = False
    heading: bool = False


@dataclass(frozen=True)
class DotPanel:
    """One figure of a dot chart, on a scale of its own. Attributes: ``title``; ``about``; ``rows``; ``digits``."""

    title: str
    rows: Sequence[DotRow]
    about: str = ""
    digits: int = 3

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the scale, round enough for all values and intervals."""
        numbers = [n for row in self.rows for n in (row.value, row.low, row.high) if math.isfinite(n)]
        low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
        margin = (high - low) * 0.06 or max(abs(high), 1.0) * 0.05
        return low - margin, high + margin

    def at(self, value: float) -> float:
        """Where a value lies on the scale, percent."""
        low, high = self.limits
        return round(100 * (value - low) / (high - low), 2)

    @property
    def ticks(self) -> list[float]:
        """Round numbers on the scale, four or so."""
        low, high = self.limits
        rough = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(low / step)
        return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Dots(Block):
    """Figures with intervals, as dots on lines, one panel for each figure."""

    panels: Sequence[DotPanel]
    kind: ClassVar[str] = "dots"


@dataclass(frozen=True)
class HeatGrid(Block):
    """A grid of numbers on colours.

    Attributes:
        title, about: of the grid.
        columns, rows: names of its lines; ``corner`` says what they are.
        values: ``[rows][columns]``, NaN for none.
        best: (row, column) of the best cell, or None.
        close: cells that are not clearly behind it.
        digits: of the numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    corner: str = ""
    about: str = ""
    best: tuple[int, int] | None = None
    close: Sequence[tuple[int, int]] = ()
    digits: int = 3
    kind: ClassVar[str] = "heat"

    def colour(self, value: float) -> tuple[int, int, int]:
        """Red, green and blue of a value, from the grid's lowest to its highest."""
        known = [v for row in self.values for v in row if math.isfinite(v)]
        low, high = min(known), max(known)
        place = (value - low) / (high - low) if high > low else 0.5
        return _ramp(place)

    def ink(self, value: float) -> str:
        """Black or white, whichever is read better on the value's colour."""
        red, green, blue = self.colour(value)
        return "#111" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fff"


@dataclass(frozen=True)
class HeatGrids(Block):
    """Grids side by side."""

    grids: Sequence[HeatGrid]
    kind: ClassVar[str] = "heats"


@dataclass(frozen=True)
class Line:
    """A line of a chart. Attributes: ``label``; ``points`` (x, y), finite ones are drawn; ``dashed``."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Lines(Block):
    """Lines over a common axis, such as losses over steps.

    Attributes:
        title: of the chart.
        lines: at most six are told apart by colour.
        below: what the x axis is.
        about: one sentence.
        logarithmic: whether the y axis is; values of 0 and below are left out then.
    """

    title: str
    lines: Sequence[Line]
    below: str = ""
    about: str = ""
    logarithmic: bool = False
    kind: ClassVar[str] = "lines"

    def shown(self, line: Line) -> list[tuple[float, float]]:
        """The points that can be drawn, y on the axis' own scale."""
        found = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
        return [(x, math.log10(y)) for x, y in found if y > 0] if self.logarithmic else found

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top on the axes' own scales."""
        points = [point for line in self.lines for point in self.shown(line)]
        if not points:
            return 0.0, 1.0, 0.0, 1.0
        xs, ys = zip(*points, strict=True)
        margin = (max(ys) - min(ys)) * 0.06 or max(abs(max(ys)), 1.0) * 0.05
        right = max(xs) if max(xs) > min(xs) else min(xs) + 1
        # Of shares and losses, which are never below 0, no axis says so.
        floor = 0.0 if min(ys) >= 0 and not self.logarithmic else -math.inf
        return min(xs), right, max(min(ys) - margin, floor), max(ys) + margin

    def path(self, line: Line) -> str:
        """Points as SVG has them, in a box of 1000 by 1000."""
        left, right, bottom, top = self.limits
        return " ".join(
            f"{1000 * (x - left) / (right - left):.1f},{1000 - 1000 * (y - bottom) / (top - bottom):.1f}"
            for x, y in self.shown(line)
        )

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Places in percent, and numbers."""
        left, right, _, _ = self.limits
        return [(20.0 * k, _number(left + (right - left) * k / 5)) for k in range(6)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Places in percent from the top, and numbers."""
        _, _, bottom, top = self.limits
        values = [bottom + (top - bottom) * k / 4 for k in range(5)]
        return [(100 - 25.0 * k, _number(10**v if self.logarithmic else v)) for k, v in enumerate(values)]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(self.shown(line) for line in self.lines)


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        data: bytes of a PNG, JPEG or WEBP file.
        alt: what it shows, for those who do not see it.
        caption: below it.
        pixelated: whether pixels are shown as squares when it is enlarged.

    Raises:
        ReportError: the bytes are no such picture.
    """

    data: bytes = field(repr=False)
    alt: str
    caption: str = ""
    pixelated: bool = False

    def __post_init__(self) -> None:
        try:
            with opened_picture(self.data, ReportError, "It", tuple(_TYPES)) as image:
                size, kind = image.size, str(image.format)
        except ReportError as error:
            raise ReportError(f"The picture {self.alt!r} is no PNG, JPEG or WEBP file to show. {error}") from error
        object.__setattr__(self, "_size", size)
        object.__setattr__(self, "_type", _TYPES[kind])

    @classmethod
    def of(
        cls, image: Image.Image, alt: str, caption: str = "", *, photo: bool = False, pixelated: bool = False
    ) -> Picture:
        """From a Pillow image, as a JPEG where it is a ``photo``, else as a PNG."""
        file = BytesIO()
        if photo:
            image.convert("RGB").save(file, "JPEG", quality=85)
        else:
            image.save(file, "PNG", optimize=True)
        return cls(file.getvalue(), alt, caption, pixelated)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        found: tuple[int, int] = self._size  # type: ignore[attr-defined]
        return found

    @property
    def uri(self) -> str:
        """The whole file as a ``data:`` address."""
        kind: str = self._type  # type: ignore[attr-defined]
        return f"data:{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Gallery(Block):
    """Pictures beside each other. Attributes: ``pictures``; ``wide``, one in a row; ``small``, several on a phone."""

    pictures: Sequence[Picture]
    wide: bool = False
    small: bool = False
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class PictureRow:
    """Pictures of one thing. Attributes: ``caption``; ``pictures``, None where there is none."""

    caption: str
    pictures: Sequence[Picture | None]


@dataclass(frozen=True)
class PictureRows(Block):
    """Pictures in columns with heads, such as true and predicted depth; scrolls sideways on a narrow screen."""

    columns: Sequence[str]
    rows: Sequence[PictureRow]
    about: str = ""
    kind: ClassVar[str] = "picture_rows"


@dataclass(frozen=True)
class Facts(Block):
    """Names and what they stand for."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Commands(Block):
    """Lines to type. Attributes: ``lines``; ``about``, one sentence above."""

    lines: Sequence[str]
    about: str = ""
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True)
class Details(Block):
    """Blocks that are folded away below a line. Attributes: ``summary``; ``blocks``; ``open``, unfolded at first."""

    summary: str
    blocks: Sequence[Block]
    open: bool = False
    kind: ClassVar[str] = "details"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _ramp(place: float) -> tuple[int, int, int]:
    """Dark to light in equal steps, the colours of all heat maps of this library."""
    import numpy as np

    from ..pictures import heat_colours

    red, green, blue = heat_colours(np.array([min(max(place, 0.0), 1.0)]))[0].tolist()
    return int(red), int(green), int(blue)
