"""``vega3d recipes``: list, show, copy and check the settings of whole experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..contracts.paths import names_file
from .ls import Kind, ls
from .output import err, out, print_error, print_json, print_table, table
from .targets import check_target, write

if TYPE_CHECKING:
    from ..recipes.library import Examined

HELP = """List, show, copy and check recipes: settings of whole experiments.

RECIPE is a name from the list or the path of a YAML file of your own. An
override such as [bold]prior.tap=16[/] or [bold]lora=null[/] replaces one setting.

\b
[bold]Examples[/]
  vega3d recipes ls
  vega3d recipes show qwen_vl/smoke train.learning_rate=1e-4
  vega3d recipes show --diff qwen_vl/smoke mine.yaml
  vega3d recipes cp qwen_vl/lora_spatial_reasoning mine.yaml
  vega3d recipes validate mine.yaml
"""

recipes = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@recipes.command("ls")
def list_them(as_json: Json = False) -> None:
    """List the recipes that come with the library.

    The same as [bold]vega3d ls recipes[/].
    """
    ls(Kind.recipes, as_json)


@recipes.command()
def show(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE [SETTING=VALUE]...", help="A recipe, then overrides.")
    ],
    diff: Annotated[bool, typer.Option("--diff", help="Compare two recipes; overrides hold for the second.")] = False,
    defaults: Annotated[bool, typer.Option("--defaults", help="Also the settings that are left open.")] = False,
    as_json: Json = False,
) -> None:
    """Show a recipe's settings, with all it extends and your overrides.

    Variables of the environment that are not set stay as they are written.
    """
    from ..recipes.yaml import dump

    names, overrides = _split(arguments)
    if len(names) != (2 if diff else 1):
        raise typer.BadParameter(f"{'two recipes are' if diff else 'one recipe is'} expected, got {len(names)}.")
    if diff:
        _show_difference(names, [_values(names[0], [], defaults), _values(names[1], overrides, defaults)], as_json)
        return
    values = _values(names[0], overrides, defaults)
    if as_json:
        print_json(values)
    else:
        typer.echo(dump(values), nl=False)


@recipes.command()
def cp(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Its name, see `vega3d recipes ls`.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to write it. Default: here, under its own name.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="One file with all settings, that extends nothing and has no comments.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Copy a recipe of the library to a file of your own, to change it there.

    The copy extends what the recipe extends: what it leaves out is there.
    See all settings by [bold]vega3d recipes show FILE[/], all defaults too
    by [bold]--defaults[/].
    """
    from ..recipes.layers import FOLDER
    from ..recipes.library import find_recipe
    from ..recipes.yaml import dump

    if names_file(name):
        raise typer.BadParameter(f"{name} is a file of your own; `cp` copies recipes of the library, by name.")
    recipe = find_recipe(name)
    to = to or Path(f"{recipe.path.stem}.yaml")
    check_target(to, ".yaml", force=force)
    if flat:
        text = f"# {recipe.summary}\n\n{dump(_values(name, [], False))}"
    else:
        # The copy lies elsewhere, so the folder is written out; names in `extends` hold everywhere.
        text = recipe.path.read_text(encoding="utf-8").replace(f"${{{FOLDER}}}", str(recipe.path.parent.resolve()))
    write(to, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    out.print(Text(str(to), style="bold"), soft_wrap=True)


@recipes.command()
def validate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]... [SETTING=VALUE]...", help="Recipes, then overrides. Default: all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check recipes and report every mistake at once, with line numbers.

    The exit code is 1 when there is any. What only the host itself can tell,
    such as whether a LoRA pattern matches, is checked when training begins.
    """
    from ..recipes.library import RecipeError, examine_recipe, list_recipes

    names, overrides = _split(arguments or [])
    names = names or [recipe.name for recipe in list_recipes()]
    found = {name: examine_recipe(name, overrides) for name in names}
    if as_json:
        print_json([_row(name, examined) for name, examined in found.items()])
    else:
        for name, examined in found.items():
            if examined.problems:
                print_error(RecipeError(examined.path, examined.problems))
            else:
                out.print(Text.assemble(("ok", "green"), f"  {name}"), soft_wrap=True)
        unset = {item for examined in found.values() for item in examined.unset.items()}
        for variable, meaning in sorted(unset):
            err.print(Text(f"To train, set {variable}: {meaning}", style="yellow"), soft_wrap=True)
    if any(examined.problems for examined in found.values()):
        raise typer.Exit(1)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Recipes and overrides: only the latter have an equals sign, unless a file is called so."""
    names = [a for a in arguments if "=" not in a or names_file(a)]
    return names, [a for a in arguments if a not in names]


def _values(name: str, overrides: list[str], defaults: bool) -> dict[str, Any]:
    from ..recipes.library import RecipeError, examine_recipe

    examined = examine_recipe(name, overrides)
    if examined.settings is None:
        raise RecipeError(examined.path, examined.problems)
    return examined.settings.to_dict() if defaults else examined.values


def _show_difference(names: list[str], values: list[dict[str, Any]], as_json: bool) -> None:
    from ..recipes.layers import leaves

    flat = [dict(leaves(each)) for each in values]
    settings = [s for s in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(s, ...) != flat[1].get(s, ...)]
    if as_json:
        sides = list(zip(("first", "second"), flat, strict=True))
        print_json({setting: {side: each[setting] for side, each in sides if setting in each} for setting in settings})
        return
    if not settings:
        out.print("No setting differs.")
        return
    made = table("setting", *names) if names[0] != names[1] else table("setting", names[0], "with overrides")
    for setting in settings:
        made.add_row(setting, *(Text(_written(each[setting])) if setting in each else _absent() for each in flat))
    print_table(made)


def _written(value: Any) -> str:
    """As YAML has it."""
    from ..recipes.yaml import dump

    return dump(value).removesuffix("\n...\n").strip()


def _absent() -> Text:
    return Text("-", style="dim")


def _row(name: str, examined: Examined) -> dict[str, Any]:
    return {
        "recipe": name,
        "path": str(examined.path),
        "valid": not examined.problems,
        "problems": [
            {
                "file": None if p.place is None or p.place.path is None else str(p.place.path),
                "line": None if p.place is None else p.place.line,
                "override": None if p.place is None else p.place.override or None,
                "setting": p.setting or None,
                "message": p.message,
            }
            for p in examined.problems
        ],
        "unset": examined.unset,
    }
