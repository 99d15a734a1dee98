"""``vega3d analyse``: does a prior know space, before a language model is involved?"""

from __future__ import annotations

import typer

from .compare import compare
from .correspondence import correspondence
from .readout import readout
from .report import report
from .sweep import sweep
from .triview import triview

HELP = """Does a prior know space? Judged on scenes, without a language model.

Every score comes with its controls (an untrained twin, the VAE alone, pixels,
position only, ...) and a 95% interval.

\b
[bold]Examples[/]
  vega3d analyse correspondence tiny-wan --scenes room:0..7
  vega3d analyse correspondence wan2.1-t2v-1.3b dinov3-vitl --scenes scans/
  vega3d analyse sweep wan2.1-t2v-1.3b --scenes scans/ --timesteps 0..1000..100
  vega3d analyse readout wan2.1-t2v-1.3b --scenes scans/ --contexts views
  vega3d analyse compare analysis_out/*.json --downstream scores.csv
  vega3d analyse triview agent.mp4 wrist.mp4 --prior wan2.1-t2v-1.3b
  vega3d analyse report analysis_out
"""

analyse = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")

analyse.command("correspondence")(correspondence)
analyse.command("sweep")(sweep)
analyse.command("readout")(readout)
analyse.command("compare")(compare)
analyse.command("triview")(triview)
analyse.command("report")(report)
