"""``vega3d scene export``: a scene as a folder, a video, or rows of data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..output import out, yellow_warnings
from ..targets import check_target
from .options import Address, Count, DepthUnits, Given, How, Layout, NoCheck, Ratio, Step, Views, chosen, opened


class Target(str, Enum):
    """What to write."""

    folder = "folder"
    video = "video"
    rows = "rows"


class Style(str, Enum):
    """Whose rows."""

    llava = "llava"
    vg_llm = "vg-llm"


def export(
    address: Address,
    target: Annotated[Target, typer.Option("--to", help="A folder as ScanNet is exported, an mp4, or rows of JSON.")],
    to: Annotated[Path, typer.Option("--out", metavar="PATH", help="Where: a new folder, or a file.")],
    how: How = Views.every,
    count: Count = None,
    step: Step = None,
    given: Given = None,
    ratio: Ratio = 1.0,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of a video.")] = 8,
    style: Annotated[Style, typer.Option(help="Whose rows.")] = Style.llava,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of question and answer. Default: what a rendered room answers."),
    ] = None,
    layout: Layout = None,
    depth_units: DepthUnits = None,
    no_check: NoCheck = False,
) -> None:
    """Write a scene down again, all its views or chosen ones.

    A folder can be read back as a scene. Rows hold questions with answers and
    the pictures of the views; `vega3d train` and `ablate` read them.

    \b
      vega3d scene export room:0 --to folder --out room_0
      vega3d scene export 'room:0?views=40' --to video --out room.mp4
      vega3d scene export room:0 --to rows --out rows.json --style vg-llm
    """
    from ...scenes.export import export_folder, export_rows, export_video
    from ...scenes.questions import object_questions, read_questions

    if target is not Target.folder:
        check_target(to, ".mp4" if target is Target.video else ".json")
    scene = opened(address, layout, depth_units, no_check)
    if how is not Views.every or step is not None:
        scene = scene.select(chosen(scene, how, count, step, given, ratio).indices)
    with yellow_warnings():
        if target is Target.folder:
            export_folder(scene, to)
            what = f"{len(scene)} views"
        elif target is Target.video:
            export_video(scene, to, fps)
            what = f"{len(scene)} frames at {fps} a second"
        else:
            asked = object_questions(scene) if questions is None else read_questions(questions)
            what = f"{export_rows(scene, to, asked, style.value)} rows"
    out.print(Text(f"Wrote {to}: {what}"), soft_wrap=True)
