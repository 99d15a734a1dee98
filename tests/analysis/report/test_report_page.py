"""The template: every block is rendered, everything is escaped, and nothing is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from itertools import count
from pathlib import Path

import pages
import pytest
from PIL import Image

from vega3d_plugin.analysis.report import (
    Block,
    Card,
    Cards,
    Commands,
    Details,
    DotPanel,
    DotRow,
    Dots,
    Facts,
    Finding,
    Findings,
    Gallery,
    HeatGrid,
    HeatGrids,
    Line,
    Lines,
    Page,
    Picture,
    PictureRow,
    PictureRows,
    Prose,
    Section,
    Table,
    render,
    write_page,
)
from vega3d_plugin.contracts.errors import ReportError

HOSTILE = (
    "<script>alert(1)</script> \"'> <img src=x onerror=alert(2)> {{ 7*7 }} javascript:alert(3) http://evil.example/"
)


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 6)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def every_block(word: Callable[[], str]) -> list[Block]:
    """One of each kind, every text in it being the next word."""
    picture = Picture(png(), word(), word())
    rows = [DotRow(word(), heading=True), DotRow(word(), 0.5, 0.25, 0.75, strong=True), DotRow(word())]
    grid = [[0.1, math.nan], [0.3, 0.2]]
    line = Line(word(), [(0, 1.0), (1, 0.5), (2, math.nan), (3, 0.1)])
    return [
        Prose([word(), word()]),
        Prose([word()], small=True),
        Findings([Finding(word(), "good"), Finding(word(), "bad", word()), Finding(word(), "open"), Finding(word())]),
        Cards([Card(word(), word(), word(), "good"), Card(word(), word())]),
        Table([word(), word()], [[word(), (word(), word())], [word(), word()]], strong=[0], caption=word()),
        Dots([DotPanel(word(), rows, word())]),
        HeatGrid(word(), [word(), word()], [word(), word()], grid, word(), word(), (1, 0), [(1, 1)]),
        HeatGrids([HeatGrid(word(), [word()], [word()], [[0.5]]), HeatGrid(word(), [word()], [word()], [[0.25]])]),
        Lines(word(), [line, Line(word(), [(0, 2), (3, 1)], dashed=True)], word(), word()),
        Lines(word(), [Line("never drawn", [])]),
        Gallery([picture]),
        Gallery([Picture(png(), word(), word(), pixelated=True)], wide=True),
        PictureRows([word(), word()], [PictureRow(word(), [picture, None])], word()),
        Facts([(word(), word())]),
        Commands([word(), word()], word()),
        Details(word(), [Prose([word()]), Details(word(), [Facts([(word(), word())])])], open=True),
    ]


def page_of(word: Callable[[], str]) -> Page:
    top, below = every_block(word), every_block(word)
    return Page(word(), [Section(word(), below, word()), Section("Another", [])], word(), word(), top)


def same(text: str) -> Callable[[], str]:
    return lambda: text


def test_every_text_of_every_block_is_there() -> None:
    numbers = count()
    page = page_of(lambda: f"word{next(numbers)}x")
    found = pages.check_page(render(page))
    shown = "".join(found.text) + " ".join(found.alts)
    assert [n for n in range(next(numbers)) if f"word{n}x" not in shown] == []
    assert found.tags.count("img") == 2 * 3
    assert found.tags.count("polyline") == 2 * 2
    assert found.links[1] == "another"


def test_everything_is_escaped() -> None:
    text = render(page_of(same(HOSTILE)))
    found = pages.check_page(text)
    assert "<script" not in text
    assert found.tags.count("img") == 2 * 3
    assert all(alt == HOSTILE for alt in found.alts)
    # What was given is what is shown: nothing is dropped, and nothing is taken for a template.
    shown = "".join(found.text)
    assert shown.count("<script>alert(1)</script>") > 100
    assert shown.count("{{ 7*7 }}") == shown.count("<script>alert(1)</script>")


def test_it_is_a_page_from_its_first_letter_on() -> None:
    assert render(page_of(same("x"))).startswith("<!doctype html>\n<html lang")


def test_backticks_become_code_and_stay_escaped() -> None:
    text = render(Page("t", [Section("s", [Prose(["run `vega3d <b>` now, and `open"])])]))
    pages.check_page(text)
    assert "run <code>vega3d &lt;b&gt;</code> now, and `open" in text


def test_two_sections_of_one_name() -> None:
    with pytest.raises(ReportError, match="'scenes'"):
        render(Page("t", [Section("Scenes", []), Section("scenes!", [])]))


def test_a_section_whose_name_has_no_letters() -> None:
    pages.check_page(render(Page("t", [Section("???", []), Section("other", [])])))


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = write_page(page_of(same("words")), tmp_path / "below" / "page.html")
    assert path.read_text(encoding="utf-8") == render(page_of(same("words")))
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg onload=alert(1)>", png()[:30]])
def test_a_picture_that_is_none(data: bytes) -> None:
    with pytest.raises(ReportError, match="'a room' is no PNG"):
        Picture(data, "a room")


def test_a_picture_is_inside_the_page() -> None:
    picture = Picture(png(size=(8, 6)), "a room")
    assert picture.size == (8, 6)
    assert picture.uri.startswith("data:image/png;base64,")
    photo = Picture.of(Image.new("RGB", (30, 20)), "a photo", photo=True)
    assert photo.uri.startswith("data:image/jpeg;base64,")
    assert 'width="8" height="6" alt="a room"' in render(Page("t", [Section("s", [Gallery([picture])])]))


def test_dots_lie_on_their_scale() -> None:
    panel = DotPanel("p", [DotRow("a", 1.0, 0.0, 2.0), DotRow("b", 4.0), DotRow("c")])
    low, high = panel.limits
    assert low < 0
    assert high > 4
    assert 0 <= panel.at(0.0) < panel.at(1.0) < panel.at(4.0) <= 100
    assert all(low <= tick <= high for tick in panel.ticks)
    assert 3 <= len(panel.ticks) <= 6
    same = DotPanel("p", [DotRow("a", 0.0)])
    assert same.at(0.0) == 50
    assert DotPanel("p", []).ticks


def test_a_heat_map_of_one_number_or_none() -> None:
    grid = HeatGrid("g", ["a"], ["b"], [[0.5]])
    assert grid.colour(0.5) == (35, 129, 139) or max(grid.colour(0.5)) < 256
    assert "none" in render(Page("t", [Section("s", [HeatGrid("g", ["a"], ["b"], [[math.nan]])])]))
    dark, light = HeatGrid("g", ["a", "b"], ["r"], [[0.0, 1.0]]), "#111"
    assert dark.ink(1.0) == light
    assert dark.ink(0.0) == "#fff"


def test_lines_leave_out_what_cannot_be_drawn() -> None:
    chart = Lines("c", [Line("a", [(0, 1), (1, 0), (2, 10), (3, math.inf)])], logarithmic=True)
    assert chart.shown(chart.lines[0]) == [(0, 0), (2, 1)]
    assert len(chart.path(chart.lines[0]).split()) == 2
    assert chart.y_ticks[0][0] == 100
    assert Lines("c", [Line("a", [(1, math.nan)])]).is_empty
    pages.check_page(render(Page("t", [Section("s", [Lines("c", [Line("a", [(5, 2)])])])])))


def test_template_and_style_are_part_of_the_package() -> None:
    """Files that are no modules are left out of a wheel unless they are named."""
    root = Path(__file__).parents[3]
    named = (root / "pyproject.toml").read_text(encoding="utf-8")
    for file in (root / "vega3d_plugin" / "analysis").rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            assert f'"{file.relative_to(root / "vega3d_plugin").as_posix()}"' in named, file
