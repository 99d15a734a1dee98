"""A page of sections, rendered as one HTML file that asks for nothing: no script, no address outside."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...contracts.errors import ReportError
from ...storage.versions import library_version
from ...storage.writing import write_atomically
from .blocks import Block

#: What a browser may do with a page: show the pictures and the style that are inside it, and nothing else.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A part of a page. Attributes: ``title``; ``blocks``; ``lead``, what it shows, in a sentence or two."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Its name in links inside the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: what it is about.
        eyebrow: a line above the title: what kind of report.
        lead: the answer, in a sentence or two.
        top: blocks above the first section.
        sections: in order; their titles differ.
    """

    title: str
    sections: Sequence[Section]
    eyebrow: str = ""
    lead: str = ""
    top: Sequence[Block] = ()


def render(page: Page) -> str:
    """The page as HTML. Every text in it is escaped, whatever it holds.

    Raises:
        ReportError: two sections of one name.
    """
    anchors = [section.anchor for section in page.sections]
    if len(set(anchors)) != len(anchors):
        twice = next(anchor for i, anchor in enumerate(anchors) if anchor in anchors[:i])
        raise ReportError(f"Two sections of the report are called {twice!r}. Give them different titles.")
    text: str = _template().render(page=page, policy=POLICY, version=library_version(), style=_read("style.css"))
    return text.lstrip()


def write_page(page: Page, path: str | Path) -> Path:
    """Write :func:`render` to a file, whole or not at all; return its path."""
    text = render(page)
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Path(path)


@cache
def _template() -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"page.html": _read("page.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["prose"] = _prose
    return environment.get_template("page.html")


def _figure(value: float, digits: int = 3) -> str:
    return "none" if math.isnan(value) else f"{value:.{digits}f}"


def _prose(text: str) -> Any:
    """Escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
