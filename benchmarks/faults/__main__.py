"""Faults on purpose: kills, races, damaged files. Each module here attacks one part and counts what came of it.

    python benchmarks/faults                       # all of them, about five minutes
    python benchmarks/faults folders --seconds 60

A module has ``run(seconds)``, which returns a row for each attack: ``attack`` (what was done), ``trials``, ``wrong`` (a
plausible result that is not the right one), ``raw`` (an exception that is none of this library's), ``leftovers`` (files
that nobody clears away). The goal is zero in the last three; then the command ends with 0, else with 1.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
#: What of a row must be zero.
BAD = ("wrong", "raw", "leftovers")


def modules() -> list[str]:
    """Names of the attackers, in this folder."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Modules; default: all.")] = None,
    seconds: Annotated[float, typer.Option(help="For all together.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Attack the library and print what came of it."""
    chosen = names or modules()
    unknown = sorted(set(chosen) - set(modules()))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: no such module. There are: {', '.join(modules())}.")
    sys.path.insert(0, str(HERE))
    rows: list[dict[str, Any]] = []
    for name in chosen:
        began = time.monotonic()
        found = importlib.import_module(name).run(seconds / len(chosen))
        rows += [{"part": name, **row} for row in found]
        print(f"{name}: {len(found)} attacks in {time.monotonic() - began:.0f} s", file=sys.stderr)
    bad = any(row[key] for row in rows for key in BAD)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    raise typer.Exit(int(bad))


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Faults on purpose", title_justify="left")
    table.add_column("part")
    table.add_column("attack", overflow="fold")
    for key in ("trials", *BAD):
        table.add_column(key, justify="right")
    for row in rows:
        figures = [f"[red]{row[key]:,}[/]" if row[key] and key in BAD else f"{row[key]:,}" for key in ("trials", *BAD)]
        table.add_row(row["part"], row["attack"], *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    typer.run(main)
