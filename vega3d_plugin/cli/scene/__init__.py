"""``vega3d scene``: look into scenes, choose views, write them down again."""

from __future__ import annotations

import typer

from .clip import clip
from .export import export
from .info import info

HELP = """Inspect a scene: views of one place, with depth and poses.

A scene is a folder or file (ScanNet as exported, EmbodiedScan's info files,
transforms.json, TUM RGB-D, COLMAP, a stereo pair, pictures, a video), or
[bold]room:SEED[/], a rendered room, or [bold]libero:SUITE/TASK[/], a task of LIBERO.

\b
[bold]Examples[/]
  vega3d scene info room:0
  vega3d scene info 'libero:libero_spatial/0?views=8&size=128x128'
  vega3d scene info data/scannet/posed_images/scene0000_00
  vega3d scene clip 'room:0?views=40' --views coverage --count 8
  vega3d scene export room:0 --to folder --out room_0
"""

scene = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")

scene.command("info")(info)
scene.command("clip")(clip)
scene.command("export")(export)
