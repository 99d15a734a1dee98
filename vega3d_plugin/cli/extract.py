"""``vega3d extract``: the features of a recipe's clips into a store, before anything is trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from tqdm import tqdm

from ..contracts.errors import Vega3dError
from .output import err, live_warnings, print_json, print_pairs
from .store import size

if TYPE_CHECKING:
    from ..features.extraction.shard import Done, Tally
    from ..training.extraction import RecipeUnits
    from ..training.scripts.extraction import ScriptUnits

SHOWN = 10
ROWS = (".json", ".jsonl")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def extract(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | ROWS | VIDEOS | SCENES | -- SCRIPT ARGS",
            help="A recipe; with --recipe, files of rows, or videos, pictures, folders of frames and scenes, or a "
            "training script with its arguments. Then overrides: prior.tap=16.",
        ),
    ],
    store: Annotated[str | None, typer.Option(metavar="URL", help="Folder or URL; default: the recipe's.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="RECIPE", help="Host, prior and data settings.")] = None,
    form: Annotated[
        str | None, typer.Option(metavar="FORM", help="native, aligned, either with -bf16 or -int8.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of the prior; default: CUDA if there is any.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the cost; extract nothing.")] = False,
    on: Annotated[str, typer.Option(metavar="DEVICE", help="For --plan: h100, a100, ... or cpu, measured.")] = "h100",
    verify: Annotated[int, typer.Option(min=0, metavar="N", help="Compute N clips again and compare.")] = 0,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Use Ray: auto, or a cluster's address.")] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="With --ray: at most so many workers.")] = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=0, help="Size of shards, MiB; 0: a file a clip.")] = 512,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the names of all entries, for `store prune --keep`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result, machine-readable.")] = False,
) -> None:
    """Fill a store with the features that training will ask for.

    Clips are found exactly as the host would see them, by its own processor and
    code; neither its weights nor its vision tower are loaded. What the store has
    is left out, so the same command resumes after an interruption.

    \b
      vega3d extract qwen_vl/smoke --store features
      vega3d extract mine.yaml --store s3://bucket/features --form aligned-bf16
      vega3d extract mine.yaml --plan --on h100
      vega3d extract rows.jsonl --recipe mine.yaml --store features
      vega3d extract room:0..7 kitchen.mp4 --recipe mine.yaml --store features
      torchrun --nproc-per-node 8 --no-python vega3d extract mine.yaml
      vega3d extract mine.yaml --ray auto
      vega3d extract --recipe llava_video/full_scene_understanding --store
          features -- llava/train/train_mem.py ARGS
    """
    from ..features.extraction.ranks import rank_and_world

    rank, world = rank_and_world()
    with live_warnings():
        if _is_script(given):
            _check_script(recipe, plan=plan, ray=ray)
            units: RecipeUnits | ScriptUnits = _of_script(given, recipe or "", store, form, device)
        else:
            rows = _units(given, recipe, store or ("." if plan else None), form, device, first=rank == 0)
            if plan:
                _plan(rows, on, as_json)
                return
            units = rows
        tally = _run(units, rank, world, ray, actors, shard_mb << 20)
        different = _verify(units, verify) if verify and rank == 0 else {}
    if keys is not None and rank == 0:
        _write_keys(keys, tally)
    _report(units, tally, different, verify, rank, world, as_json)
    if different or (tally.bad and not tally.clips):
        raise typer.Exit(1)


def _is_script(given: Sequence[str]) -> bool:
    return given[0] == "-m" or given[0].endswith(".py")


def _check_script(recipe: str | None, *, plan: bool, ray: str | None) -> None:
    if recipe is None:
        raise typer.BadParameter("which host and prior? Pass --recipe RECIPE before the script")
    if plan or ray is not None:
        raise typer.BadParameter("a script's rows are known to its own process alone: leave out --plan and --ray")


def _of_script(
    words: Sequence[str], recipe: str, store: str | None, form: str | None, device: str | None
) -> ScriptUnits:
    from ..training.scripts import parse_command, script_traceback
    from ..training.scripts.extraction import script_request, units_of_script

    command = parse_command(words)
    request = script_request(recipe, store=store, form=form, device=device)
    try:
        return units_of_script(request, command)
    except Vega3dError:
        raise
    except Exception as error:
        # The script's own mistake, shown as python shows it.
        sys.stderr.write(script_traceback(error, command))
        raise SystemExit(1) from None


def _units(
    given: Sequence[str], recipe: str | None, store: str | None, form: str | None, device: str | None, *, first: bool
) -> RecipeUnits:
    from ..training.extraction import RecipeUnits, make_request, media_rows

    sources = [text for text in given if not _OVERRIDE.match(text)]
    overrides = [text for text in given if _OVERRIDE.match(text)]
    if recipe is None:
        script = next((text for text in sources if text.endswith(".py")), None)
        if script is not None:
            raise typer.BadParameter(
                f"{script} is a script: name the recipe before it, --recipe RECIPE --store URL -- {script} ARGS"
            )
        if len(sources) != 1:
            raise typer.BadParameter("give one recipe, or rows, videos or scenes with --recipe RECIPE")
        if sources[0].endswith(ROWS) or Path(sources[0]).is_dir():
            raise typer.BadParameter(f"{sources[0]} is no recipe; which host and prior? Pass --recipe RECIPE")
        recipe, sources = sources[0], []
    rows = [source for source in sources if source.endswith(ROWS)]
    if rows and len(rows) < len(sources):
        raise typer.BadParameter("give files of rows, or videos and scenes, not both at once")
    media = media_rows(sources) if sources and not rows else None
    # Rows that are made here have files of none.
    files = rows or (["-"] if media else [])
    request = make_request(recipe, overrides, store=store, form=form, device=device, files=files)
    bar = (lambda numbers: tqdm(numbers, desc="Rows", unit="row", disable=None)) if first else iter
    return RecipeUnits(request, media, bar)


def _run(
    units: RecipeUnits | ScriptUnits, rank: int, world: int, ray: str | None, actors: int | None, shard_bytes: int
) -> Tally:
    from ..features.extraction.shard import extract_shard

    total = len(units) if world == 1 else None
    with tqdm(total=total, desc="Clips", unit="row", disable=None if rank == 0 else True) as bar:
        told = _teller(bar)
        if ray is not None:
            from ..features.extraction.with_ray import extract_with_ray

            gpus = units.request.place.type == "cuda"
            return extract_with_ray(units, ray, actors=actors, gpus=gpus, shard_bytes=shard_bytes, told=told)
        return extract_shard(units, rank=rank, world=world, shard_bytes=shard_bytes, told=told)


def _teller(bar: Any) -> Callable[[Done], None]:
    made = written = 0

    def tell(done: Done) -> None:
        nonlocal made, written
        made, written = made + done.made, written + done.bytes
        bar.set_postfix_str(f"{made:,} clips, {size(written)}", refresh=False)
        bar.update()
        if done.error:
            bar.clear()
            err.print(Text(f"{done.unit}: {done.error}", style="yellow"), soft_wrap=True)

    return tell


def _verify(units: RecipeUnits | ScriptUnits, count: int) -> dict[str, str]:
    from ..training.extraction import verify_sample

    return verify_sample(units, count, lambda some: tqdm(some, desc="Verifying", unit="row", disable=None))


def _report(
    units: RecipeUnits | ScriptUnits,
    tally: Tally,
    different: dict[str, str],
    verified: int,
    rank: int,
    world: int,
    as_json: bool,
) -> None:
    bad = {**{row.name: row.reason for row in units.bad}, **tally.bad}
    values: dict[str, Any] = {
        "store": units.request.store.url,
        "form": units.request.store.form,
        "rows": len(units.rows),
        "bad": bad,
        "units": tally.units,
        "clips": tally.clips,
        "computed": tally.made,
        "bytes": tally.bytes,
        "prior_seconds": round(tally.seconds, 3),
        "different": different,
    }
    if as_json:
        print_json({**values, "rank": rank, "world": world})
        return
    if bad and rank == 0:
        err.print(Text(f"{len(bad):,} rows cannot be used:", style="yellow"))
        for name, reason in list(bad.items())[:SHOWN]:
            err.print(Text(f"  {name}: {reason}", style="yellow"), soft_wrap=True)
    rate = f", {tally.made / tally.seconds:.3g} clips a second of the prior's time" if tally.made else ""
    table = {
        **({"rank": f"{rank} of {world}"} if world > 1 else {}),
        "store": f"{values['store']} ({values['form']})",
        "rows": f"{values['rows']:,}, {tally.units:,} with different pictures, {units.text:,} without pictures",
        "clips": f"{tally.clips:,}: {tally.made:,} computed, {tally.clips - tally.made:,} already there",
        "written": size(tally.bytes) + rate,
        "bad rows": f"{len(bad):,}",
    }
    if verified:
        table["verified"] = "equal, bit for bit" if not different else f"{len(different):,} DIFFER"
    print_pairs(table)
    for name, problem in different.items():
        err.print(Text(f"{name}: {problem}", style="red"), soft_wrap=True)


def _plan(units: RecipeUnits, device: str, as_json: bool) -> None:
    from ..features.extraction.planning import REACHED
    from ..training.extraction import make_plan

    plan = make_plan(units, device)
    if as_json:
        print_json(plan)
        return
    unknown = "not known before this prior runs"
    hours = plan["hours"]
    print_pairs(
        {
            "rows": f"{plan['rows']:,}, {plan['units']:,} with different pictures",
            "clips": f"{plan['clips']:,}" + ("" if plan["exact"] else " (from a sample)"),
            "a clip": f"{plan['frames']} frames of {plan['size'][0]}x{plan['size'][1]}",
            "FLOP": unknown if plan["flops"] is None else f"{plan['flops']:.3g}",
            f"hours on one {device}": unknown if hours is None else f"{hours:,.2f}",
            "bytes": unknown if plan["bytes"] is None else f"{size(plan['bytes'])} as {plan['form']}",
            "already there": f"{plan['there']:,} entries",
        }
    )
    if device != "cpu":
        err.print(Text(f"Hours at {REACHED:.0%} of the data sheet's bfloat16 rate.", style="dim"))


def _write_keys(path: Path, tally: Tally) -> None:
    from .targets import write

    text = "".join(f"{name}\n" for name in sorted(tally.names))
    write(path, lambda place: place.write_text(text, encoding="utf-8"))
