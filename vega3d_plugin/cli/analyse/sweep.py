"""``vega3d analyse sweep``: which timestep and which block?"""

from __future__ import annotations

from typing import Annotated

import typer

from ..output import print_json, yellow_warnings
from .asked import (
    OUT,
    Change,
    Device,
    Out,
    Rule,
    Scenes,
    Seed,
    Views,
    asked_priors,
    check_folder,
    numbers,
    opened_scenes,
    print_result,
    progress_bar,
    write_result,
)


def sweep(
    prior: Annotated[str, typer.Argument(metavar="PRIOR", help="A name, see `vega3d ls priors`.")],
    scenes: Scenes,
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Such as 0,100,300 or 0..1000..100. Default: the prior's own."),
    ] = None,
    taps: Annotated[
        str | None, typer.Option(metavar="LIST", help="Blocks, such as 10,20 or 10..28. Default: all.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="frame, views or video. Default: the prior's own.")] = None,
    protocol: Rule = "visible",
    views: Views = 8,
    change: Change = None,
    seed: Seed = 0,
    device: Device = None,
    readout: Annotated[
        bool, typer.Option("--readout", help="Also train a linear depth head at every cell; needs four scenes.")
    ] = False,
    most_gb: Annotated[
        float, typer.Option("--max-gb", min=0.01, help="Of features held at once; more taps cost further forwards.")
    ] = 2.0,
    folder: Out = OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score a prior at every timestep and tap of a grid, as heat maps.

    All taps of one timestep come from one forward. The table says which cells
    are within noise of the best one, and how the best stands beside its
    controls. A sweep that was stopped is resumed; with --readout, features
    are made anew.

    \b
      vega3d analyse sweep tiny-wan --scenes room:0..7 --timesteps 0..1000..250
      vega3d analyse sweep wan2.1-t2v-1.3b --scenes scans/
                           --timesteps 100,300,500 --taps 10..28..2
    """
    from ...analysis import sweep as run
    from ...analysis.readouts.in_sweep import DepthReadout
    from ...analysis.report.scene_sheets import write_scene_sheets
    from ...analysis.scoring import checked_device

    steps = None if timesteps is None else numbers(timesteps, "--timesteps")
    blocks = None if taps is None else numbers(taps, "--taps")
    ((name, settings),) = asked_priors([prior], change)
    check_folder(folder)
    places = opened_scenes(scenes)
    with yellow_warnings(), progress_bar() as told:
        result = run(
            settings,
            places,
            timesteps=steps,
            taps=blocks,
            context=context,
            protocol=protocol,
            views=views,
            seed=seed,
            device=device,
            records=folder / "records",
            readout=DepthReadout(seed=seed, device=checked_device(device)) if readout else None,
            most_bytes=round(most_gb * 1e9),
            check=False,
            progress=told,
        )
    write_scene_sheets(folder, places)
    files = write_result(folder / f"{name}_{result.context}_sweep", result, result.plot)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    print_result(result.table(), files)
