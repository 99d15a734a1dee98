"""``vega3d analyse readout``: what can a small head read of space from the features?"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from ..output import print_json, yellow_warnings
from .asked import (
    OUT,
    Change,
    Contexts,
    Device,
    Out,
    Priors,
    Scenes,
    Store,
    asked_priors,
    check_folder,
    opened_scenes,
    print_result,
    progress_bar,
    write_result,
)


class HeadSize(str, Enum):
    """Of the head that reads 4 views."""

    small = "small"
    full = "full"


def readout(
    priors: Priors,
    scenes: Scenes,
    contexts: Contexts = None,
    size: Annotated[
        HeadSize, typer.Option(help="small: minutes on a CPU. full: the published head, 384 M parameters.")
    ] = HeadSize.small,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of both trainings. Default: 600 and 300.")] = None,
    views: Annotated[int, typer.Option("--views", min=4, help="Views of each scene, spread evenly.")] = 12,
    held_out: Annotated[
        float, typer.Option("--held-out", min=0.01, max=0.99, help="Share of the scenes to judge on.")
    ] = 0.25,
    controls: Annotated[
        list[str] | None,
        typer.Option("--controls", metavar="NAME", help="Only these, such as 'position only'; repeatable; or none."),
    ] = None,
    change: Change = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, the heads, the clips, the twin and the noise.")
    ] = 0,
    device: Device = None,
    store: Store = None,
    folder: Out = OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train small heads on frozen features, and judge them on other scenes.

    Two heads. One reads 4 views: 3D points, depth and relative poses, with the
    losses and metrics of VidFM3D. The other reads one view: depth in metres
    through probe3d's linear head. Both are trained anew on every control.

    Give some dozens of scenes: a quarter of them is held out, and intervals
    are drawn over these. In --out: the result as .json, the table as .txt, its
    picture with predicted beside true depth as .png. A run that was stopped is resumed.

    \b
      vega3d analyse readout tiny-wan --scenes room:0..31
      vega3d analyse readout wan2.1-t2v-1.3b dinov3-vitl --scenes scans/
                             --contexts views --store features/
    """
    from ...analysis import ReadoutResult
    from ...analysis import readout as run
    from ...analysis.report.scene_sheets import write_scene_sheets

    asked = asked_priors(priors, change)
    check_folder(folder)
    places = opened_scenes(scenes)
    results: list[ReadoutResult] = []
    with yellow_warnings(), progress_bar() as told:
        for _, settings in asked:
            results.append(
                run(
                    settings,
                    places,
                    contexts=contexts or None,
                    size=size.value,
                    steps=steps,
                    views=views,
                    held_out=held_out,
                    controls=_controls(controls),
                    seed=seed,
                    device=device,
                    store=store,
                    records=folder / "records",
                    check=False,
                    progress=told,
                )
            )
    write_scene_sheets(folder, places)
    files = []
    for (name, _), result in zip(asked, results, strict=True):
        files += write_result(folder / f"{name}_readout", result, result.plot)
    together = results[0].model_copy(update={"priors": tuple(each for result in results for each in result.priors)})
    if as_json:
        print_json(together.model_dump(mode="json"))
        return
    print_result(together.table(), files)


def _controls(asked: list[str] | None) -> bool | list[str]:
    if not asked:
        return True
    return False if asked == ["none"] else asked
