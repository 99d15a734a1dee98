"""One self-contained HTML page: the template that every report of this library is made of, and the analysis report."""

from __future__ import annotations

from .blocks import (
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
    Line,
    Lines,
    Picture,
    PictureRow,
    PictureRows,
    Prose,
    Table,
)
from .page import Page, Section, render, write_page

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Commands",
    "Details",
    "DotPanel",
    "DotRow",
    "Dots",
    "Facts",
    "Finding",
    "Findings",
    "Gallery",
    "HeatGrid",
    "Line",
    "Lines",
    "Page",
    "Picture",
    "PictureRow",
    "PictureRows",
    "Prose",
    "Section",
    "Table",
    "render",
    "write_page",
]
