"""Recipes: the settings of whole experiments, as YAML files that come with the library or are the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts.errors import SettingsError, UnknownNameError
from ..contracts.paths import given_path, names_file, path_problem
from ..contracts.settings import BranchSettings
from ..contracts.tables import HOSTS
from .blocks import DataSettings, TrainSettings, TuneSettings
from .checks import check
from .layers import Layers, gather
from .problems import Place, Problem, RecipeError
from .schema import TINY, HostSettings, RecipeSettings

__all__ = [
    "TINY",
    "DataSettings",
    "Examined",
    "HostSettings",
    "Place",
    "Problem",
    "Recipe",
    "RecipeError",
    "RecipeSettings",
    "TrainSettings",
    "TuneSettings",
    "branch_settings",
    "examine_recipe",
    "find_recipe",
    "list_recipes",
    "read_recipe",
    "recipe_path",
]

PACKAGE = "vega3d_recipes"


@dataclass(frozen=True)
class Recipe:
    """A recipe that comes with the library.

    Attributes:
        name: folder and file, such as ``qwen_vl/lora_spatial_reasoning``; the folder is the host's.
        path: the YAML file.
        summary: its first comment line.
    """

    name: str
    path: Path
    summary: str


@dataclass(frozen=True)
class Examined:
    """What was found in a recipe, right or wrong.

    Attributes:
        path: the recipe's file.
        files: that file and all it extends.
        values: as written in these files and the overrides, merged; defaults are not filled in, and what
            `prior: null` takes away is gone.
        settings: None when there is a mistake.
        problems: every mistake.
        unset: variables of the environment that are needed but not set, with their descriptions. No mistake here.
    """

    path: Path
    files: tuple[Path, ...]
    values: dict[str, Any]
    settings: RecipeSettings | None
    problems: tuple[Problem, ...]
    unset: dict[str, str]


def list_recipes() -> list[Recipe]:
    """The recipes that come with the library, sorted by name."""
    found = {}
    # An editable install gives a namespace package, whose path has an entry that is no folder.
    for root in importlib.import_module(PACKAGE).__path__:
        for path in Path(root).glob("*/*.yaml"):
            name = f"{path.parent.name}/{path.stem}"
            found[name] = Recipe(name, path, _summary(path))
    return [found[name] for name in sorted(found)]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, with or without ``.yaml``.

    Raises:
        UnknownNameError: no such recipe; the message names close matches.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    recipe = recipes.get(name.removesuffix(".yaml"))
    if recipe is None:
        hint = "`vega3d recipes ls` lists those of the library."
        raise UnknownNameError("recipe", name, recipes, hint=hint, broken=_broken())
    return recipe


def recipe_path(recipe: Recipe | str | Path) -> Path:
    """The file of a recipe: an existing path, or the name of one that comes with the library.

    Raises:
        UnknownNameError: no such recipe and no such file.
    """
    if isinstance(recipe, Recipe):
        return recipe.path
    if not isinstance(recipe, str):
        return given_path(recipe, SettingsError, "The recipe")
    if not names_file(recipe):
        try:
            return find_recipe(recipe).path
        except UnknownNameError:
            near = [path.name for pattern in ("*.yaml", "*.yml") for path in Path.cwd().glob(pattern)]
            problem = path_problem(recipe)
            lack = (
                f"it cannot be the path of a file: {problem}" if problem else f"there is no file {Path.cwd() / recipe}"
            )
            hint = f"`vega3d recipes ls` lists those of the library, and {lack}."
            names = (each.name for each in list_recipes())
            raise UnknownNameError("recipe", recipe, [*names, *near], hint=hint, broken=_broken()) from None
    return given_path(recipe, SettingsError, "The recipe")


def read_recipe(
    recipe: Recipe | str | Path, overrides: Sequence[str] = (), *, blocks: Collection[str] | None = None
) -> RecipeSettings:
    """Read and check a recipe.

    A recipe may name another one as ``extends``: a recipe's name or a path relative to its own file. Its own settings
    are then merged into that one's: mappings setting by setting, all else replaced. Numbers are those of YAML 1.2, so
    ``1e-4`` is one. ``${NAME}`` in a text stands for a variable of the environment that ``env`` declares;
    ``${RECIPE_DIR}`` for the folder of the file it is written in.

    Args:
        recipe: a recipe, its name, or the path of a YAML file of your own.
        overrides: such as ``prior.tap=16``, ``train.learning_rate=1e-4``, ``lora=null``; each replaces the setting it
            names, a whole block too.
        blocks: blocks that will be used, such as ``("prior",)``: only there must the variables of the environment be
            set. Default: everywhere.

    Raises:
        UnknownNameError: no such recipe and no such file.
        RecipeError: lists every mistake with file, line and setting; those of ``lora`` are found by the installed
            PEFT's signature.
    """
    layers = _gathered(recipe, overrides, blocks)
    settings = check(layers)
    if settings is None:
        raise RecipeError(layers.path, layers.problems)
    return settings


def branch_settings(recipe: Recipe | str | Path | RecipeSettings, overrides: Sequence[str] = ()) -> BranchSettings:
    """The part of a recipe that ``vega3d.patch(model, config=...)`` takes.

    Variables of the environment that only other parts use need not be set.

    Raises:
        SettingsError: the recipe has no branch (``prior: null``); and as :func:`read_recipe`.
    """
    fields = set(BranchSettings.model_fields)
    settings = recipe if isinstance(recipe, RecipeSettings) else read_recipe(recipe, overrides, blocks=fields)
    if settings.prior is None:
        raise SettingsError(
            "This recipe has `prior: null`: it trains the host without a branch, so there is nothing to patch. Ask "
            "`recipe.prior is None` before patching."
        )
    return BranchSettings.parse({name: getattr(settings, name) for name in fields & settings.model_fields_set})


def examine_recipe(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> Examined:
    """Look into a recipe without using it: mistakes are returned, and variables need not be set.

    Raises:
        UnknownNameError: no such recipe and no such file.
    """
    path = recipe_path(recipe)
    try:
        layers = _gathered(recipe, overrides, ())
    except RecipeError as error:
        return Examined(path, (path,), {}, None, error.problems, {})
    settings = check(layers)
    problems = RecipeError(path, layers.problems).problems
    return Examined(path, layers.files, layers.values, settings, problems, layers.unset)


def _gathered(recipe: Recipe | str | Path, overrides: Sequence[str], blocks: Collection[str] | None) -> Layers:
    return gather(recipe_path(recipe), overrides, lambda name: find_recipe(name).path, blocks)


def _broken() -> Mapping[str, str]:
    """Plugins that failed to load, once all were tried: the recipe may have been meant to come with one."""
    HOSTS.names()
    return HOSTS.broken


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
