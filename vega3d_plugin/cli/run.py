"""``vega3d run``: a host's own script, with the branch in the hosts that it builds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..contracts.errors import Vega3dError
from .output import err, table

#: For ``app.command``: everything from the first word on is the script's.
CONTEXT = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def run(
    recipe: Annotated[str, typer.Option(help="Name of a recipe (`vega3d ls recipes`), or a YAML file.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- SCRIPT ARGS", help="The script and its arguments, as after `python`; or `-m MODULE ARGS`."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Feature store, folder or URL: each clip is encoded once.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="As prior.tap=16; repeatable.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a video of each episode there, with the effective shares drawn over it."
        ),
    ] = None,
    episode_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS.METHOD", help="A simulator's reset, if it is none that is known (robosuite's)."
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="List what is wrapped.")] = False,
) -> None:
    """Run a host's own training or evaluation script, unchanged, with the branch.

    Each model of the recipe's host that the script builds with `from_pretrained`
    gets the branch: a new one, or the trained one of its folder. It stays
    trainable, goes into the script's optimiser, and is written wherever the
    script saves the model. With `--explain` and no script, nothing is run.

    \b
      vega3d run --recipe qwen_vl/lora_spatial_reasoning -- train.py --lr 1e-5
      torchrun --nproc-per-node 8 -m vega3d_plugin.run --recipe R -- train.py
      vega3d run --recipe openvla/lora_libero --record videos -- run_libero_eval.py
    """
    from ..training import scripts as running

    starts = [running.Start.read(text) for text in episode_start or []]
    parsed = None if explain and not command else running.parse_command(command or [])
    session = running.make_session(recipe, _say, overrides=overrides or [], store=store, record=record)
    if session is None and running.rank() == 0:
        _say(f"{recipe} has no branch (prior: null): the script runs as it is, and nothing is wrapped")
    try:
        running.run(session, parsed, _show if explain and running.rank() == 0 else None, starts=starts)
    except Vega3dError:
        raise
    except Exception as error:
        if parsed is None:
            raise
        # The script's own mistake, shown as python shows it.
        sys.stderr.write(running.script_traceback(error, parsed))
        raise SystemExit(1) from None


def _say(line: str) -> None:
    err.print(Text.assemble(("vega3d: ", "dim"), line), soft_wrap=True)


def _show(wraps: list[tuple[str, str]]) -> None:
    made = table("wrapped while the script runs", "what for", whole=("wrapped while the script runs",))
    for name, why in wraps:
        made.add_row(Text(name), Text(why))
    err.print(made)
    err.print()
