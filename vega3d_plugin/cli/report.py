"""``vega3d report``: the page of a training run, or of several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .output import out, print_json
from .targets import check_target


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of `vega3d train`.")],
    to: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The .html file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Write the report of a training run; of several, a page that compares them.

    One HTML file that holds everything it shows: losses, learning rates, the
    prior's share of the tokens, answers, plan, versions, next commands. It is
    made from what the run has left, also while it runs, after Ctrl-C or a kill.

    \b
      vega3d report outputs/mine                      # outputs/mine/report.html
      vega3d report outputs/a outputs/b --out ab.html
    """
    if to is not None:
        check_target(to, ".html")
    from ..training.report import write_comparison, write_run_report

    written = write_run_report(runs[0], to) if len(runs) == 1 else write_comparison(runs, to)
    if as_json:
        print_json({"report": str(written)})
    else:
        out.print(Text.assemble("Report: ", (str(written), "bold")), soft_wrap=True)
