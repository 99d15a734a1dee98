"""Options that the verbs about scenes share."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from ..output import yellow_warnings

if TYPE_CHECKING:
    from ...scenes.scene import Scene
    from ...scenes.views import ViewChoice

Address = Annotated[
    str,
    typer.Argument(
        metavar="SCENE",
        help="A folder or file, room:SEED, stereo:motorcycle, libero:SUITE/TASK; ?name=value may follow.",
    ),
]
Layout = Annotated[str | None, typer.Option(help="Read it as this layout; default: what it looks like.")]
DepthUnits = Annotated[
    float | None, typer.Option("--depth-units", help="Units of its depth maps in one metre; default: the layout's own.")
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not compare depth between views.")]


class Views(str, Enum):
    """How views are chosen."""

    uniform = "uniform"
    coverage = "coverage"
    every = "every"
    given = "given"


How = Annotated[
    Views, typer.Option("--views", help="uniform in time, by coverage of space, every n-th, or given ones.")
]
Count = Annotated[int | None, typer.Option("--count", min=1, help="How many: for uniform and coverage. Default: 8.")]
Step = Annotated[int | None, typer.Option("--step", min=1, help="Every how manieth; for every.")]
Given = Annotated[str | None, typer.Option("--given", metavar="A,B,...", help="Their numbers or names; for given.")]
Ratio = Annotated[
    float, typer.Option("--ratio", help="Stop once this share of all voxels is seen; for coverage, such as 0.95.")
]


def opened(address: str, layout: str | None, depth_units: float | None, no_check: bool) -> Scene:
    """The scene; warnings are shown."""
    from ...scenes.opening import open_scene

    options = {} if depth_units is None else {"depth_units": depth_units}
    with yellow_warnings():
        return open_scene(address, layout=layout, check=not no_check, **options)


def chosen(
    scene: Scene,
    how: Views,
    count: int | None,
    step: int | None,
    given: str | None,
    ratio: float,
) -> ViewChoice:
    """The views that options ask for.

    Raises:
        BadParameter: an option that belongs to another way of choosing.
    """
    from ...scenes.views import choose_views

    stray = {
        "--count": count is not None and how not in (Views.uniform, Views.coverage),
        "--step": step is not None and how is not Views.every,
        "--given": given is not None and how is not Views.given,
        "--ratio": ratio != 1 and how is not Views.coverage,
    }
    for option, wrong in stray.items():
        if wrong:
            raise typer.BadParameter(f"{option} has no meaning with --views {how.value}.")
    if how is Views.given and given is None:
        raise typer.BadParameter("--views given needs --given, with numbers or names of views.")
    names = [part.strip() for part in (given or "").split(",") if part.strip()]
    with yellow_warnings():
        return choose_views(scene, how.value, count or min(8, len(scene)), step=step or 1, given=names, ratio=ratio)
