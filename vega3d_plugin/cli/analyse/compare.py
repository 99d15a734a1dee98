"""``vega3d analyse compare``: several priors, and what they are worth downstream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..output import print_json
from .asked import OUT, Out, check_folder, print_result, write_result


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Files that `vega3d analyse correspondence` wrote.")
    ],
    downstream: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Columns prior, score and, if it matters, context; one line each."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of the CSV that holds the score; default: the only one.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context to take for a prior that was judged in several; default: its first.")
    ] = None,
    folder: Out = OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Put several priors into one table; with downstream scores, correlate.

    Pearson's and Spearman's correlations come with 95% intervals by bootstrap
    over the priors, and as a scatter plot.

    \b
      vega3d analyse compare out/*_visible.json --downstream scores.csv
    """
    from ...analysis import compare as run

    check_folder(folder)
    comparison = run(results, downstream, context=context, column=column)
    files = write_result(folder / "comparison", comparison, comparison.plot)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
        return
    print_result(comparison.table(), files)
