"""How every verb prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..contracts.errors import Vega3dWarning

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

#: Columns between the parts of a table.
GAP = 2


def print_json(value: Any) -> None:
    """Machine-readable output: plain, whatever the terminal."""
    typer.echo(json.dumps(value, indent=2))


def print_error(error: Exception) -> None:
    """An error's message, in which square brackets are just brackets."""
    # Not wrapped here, so that a path can be copied whole.
    err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)


def table(*columns: str, title: str = "", whole: Sequence[str] = ()) -> Table:
    """An empty table in the style of this command; the columns in ``whole`` are never broken or cut."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
        padding=(0, GAP, 0, 0),
    )
    for column in columns:
        made.add_column(column, no_wrap=column in whole, overflow="fold")
    return made


@contextmanager
def yellow_warnings() -> Iterator[None]:
    """Show each of this library's warnings as one line on stderr, once; others' would bury them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Vega3dWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                err.print(Text(f"Warning: {message}", style="yellow"), soft_wrap=True)


@contextmanager
def live_warnings() -> Iterator[None]:
    """Show each of this library's warnings as one line on stderr as it comes, once; all others as Python does."""
    with warnings.catch_warnings():
        plain, shown = warnings.showwarning, set()

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, Vega3dWarning):
                plain(message, category, *place, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                err.print(Text(f"Warning: {message}", style="yellow"), soft_wrap=True)

        warnings.showwarning = show
        yield


def print_pairs(values: Mapping[str, Any]) -> None:
    """Names and what they stand for, in two columns."""
    grid = Table.grid(padding=(0, GAP))
    grid.add_column()
    grid.add_column(overflow="fold")
    for name, value in values.items():
        grid.add_row(Text(f"{' ' * GAP}{name}", style="dim"), value if isinstance(value, Text) else Text(str(value)))
    out.print(grid)


def print_table(made: Table) -> None:
    """A table with air below."""
    out.print(made)
    out.print()


def stacked(first: str, *rest: str) -> Text:
    """A cell of several lines, the later ones dim; empty lines are left out."""
    return Text("\n").join([Text(first), *(Text(line, style="dim") for line in rest if line)])


def listed(names: Sequence[str]) -> Text:
    """Names separated by commas, or a dash for none."""
    return Text(", ".join(names)) if names else Text("-", style="dim")
