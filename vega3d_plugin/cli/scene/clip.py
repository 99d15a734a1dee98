"""``vega3d scene clip``: choose views, and see them on one sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..output import out, print_json, print_table, table
from ..targets import check_target
from .options import Address, Count, DepthUnits, Given, How, Layout, NoCheck, Ratio, Step, Views, chosen, opened


def clip(
    address: Address,
    how: How = Views.uniform,
    count: Count = None,
    step: Step = None,
    given: Given = None,
    ratio: Ratio = 1.0,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The sheet. Default: SCENE_views.png, in this folder.")
    ] = None,
    layout: Layout = None,
    depth_units: DepthUnits = None,
    no_check: NoCheck = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Choose views of a scene, and draw them on one sheet.

    Beside the views, where poses are known: the scene from above with the way
    of the camera, and how many voxels of 0.1 m each view adds.

    \b
      vega3d scene clip 'room:0?views=40' --views coverage --count 8
      vega3d scene clip kitchen.mp4 --count 16
    """
    from ...scenes.contact_sheet import contact_sheet

    scene = opened(address, layout, depth_units, no_check)
    to = to or Path(f"{scene.name}_views.png")
    check_target(to, ".png")
    choice = chosen(scene, how, count, step, given, ratio)
    contact_sheet(scene, choice, to)
    gains = choice.gains or [None] * len(choice.indices)
    if as_json:
        rows = [
            {"index": index, "name": scene.views[index].name, "gain": gain}
            for index, gain in zip(choice.indices, gains, strict=True)
        ]
        print_json(
            {"views": rows, "order": choice.order, "total": choice.total, "covered": choice.covered, "sheet": str(to)}
        )
        return
    covered = "" if choice.covered is None else f", {choice.covered:.1%} of {choice.total:,} voxels seen"
    out.print(Text.assemble((scene.name, "bold"), f": {how.value}{covered}"), soft_wrap=True)
    made = table("view", "name", *([] if choice.gains is None else ["adds"]))
    for index, gain in zip(choice.indices, gains, strict=True):
        made.add_row(str(index), scene.views[index].name, *([] if gain is None else [f"{gain:,}"]))
    print_table(made)
    out.print(Text(f"Wrote {to}"), soft_wrap=True)
