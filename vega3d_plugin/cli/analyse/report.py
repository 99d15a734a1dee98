"""``vega3d analyse report``: what was found, as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..output import out, yellow_warnings
from ..targets import OutputError, check_target


def report(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that the other verbs wrote their results to.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Default: OUT/report.html.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: a question about the priors.")] = None,
) -> None:
    """Put all results of a folder on one HTML page.

    Scenes, correspondence with its controls and heat maps over the frames, the
    sweep, read-outs with predicted beside true depth, settings, versions and
    fingerprints, and what a reader may and may not conclude. One file: its
    pictures are inside, and it loads nothing.

    \b
      vega3d analyse report analysis_out
    """
    from ...analysis.report.analysis_report import FILE, write_report

    target = to or folder / FILE
    if to is not None or folder.is_dir():
        check_target(target, ".html")
    with yellow_warnings():
        try:
            written = write_report(folder, target, title)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error}. Choose another --to.") from error
    size = written.stat().st_size
    out.print(
        Text(f"Wrote {written} ({size / 1e6:.1f} MB). Open it in a browser; it needs no network."), soft_wrap=True
    )
