"""``vega3d prior``: look into the priors, one by one."""

from __future__ import annotations

import typer

from . import features, info, prompt

HELP = """Inspect a prior: its settings, its features of a video, its empty prompt.

[bold]vega3d ls priors[/] lists them.

\b
[bold]Examples[/]
  vega3d prior info wan2.1-t2v-1.3b
  vega3d prior features kitchen.mp4 --prior tiny-wan
  vega3d prior export-prompt wan2.1-t2v-1.3b --pretrained weights/wan
"""

prior = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")

prior.command("info")(info.info)
prior.command("features")(features.features)
prior.command("export-prompt")(prompt.export_prompt)
