"""Recipes: the settings of whole experiments, as YAML files that come with the library."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator

from .config import BranchSettings, Float, Positive, Settings, _known_name
from .errors import SettingsError, UnknownNameError
from .plugins import plugin_manager

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


class HostSettings(Settings):
    """Which host, and what its processor is given.

    Attributes:
        adapter: a registered host, ``vega3d ls hosts``.
        model: hub id or folder.
        dtype: of the host's weights.
        min_pixels, max_pixels: area of an image after the processor's resizing.
    """

    adapter: str
    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None

    @field_validator("adapter")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_name("host", name, plugin_manager().hosts.names())


class TrainSettings(Settings):
    """The numbers of a training run, for any trainer.

    Attributes:
        learning_rate, schedule, warmup_ratio, weight_decay: of the optimiser; the ratio is of all steps.
        epochs: passes over the data.
        batch_size: samples per optimiser step, over all processes and accumulation steps.
        max_length: of a sample, in tokens.
    """

    learning_rate: Annotated[Float, Field(gt=0)]
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    epochs: Positive = 1
    batch_size: Positive
    max_length: Positive | None = None


class RecipeSettings(BranchSettings):
    """All settings of a recipe: those of the branch, and the rest of the experiment.

    Attributes:
        host, train: see there.
        lora: arguments of ``peft.LoraConfig``; None to train without.
    """

    host: HostSettings
    lora: dict[str, Any] | None = None
    train: TrainSettings | None = None


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
        raise UnknownNameError("recipe", name, recipes)
    return recipe


def read_recipe(recipe: Recipe | str | Path) -> RecipeSettings:
    """Read and check a recipe.

    Args:
        recipe: a recipe, its name, or the path of a YAML file of your own.

    Raises:
        UnknownNameError: no such recipe and no such file.
        SettingsError: lists every setting that is wrong, with its path; those of ``lora`` are checked against the
            installed PEFT.
    """
    if isinstance(recipe, str) and not Path(recipe).is_file():
        recipe = find_recipe(recipe)
    path = recipe.path if isinstance(recipe, Recipe) else Path(recipe)
    _strict().read(path)
    settings = RecipeSettings.read(path)
    if settings.lora is not None:
        _try_lora(settings.lora, path)
    return settings


def branch_settings(recipe: Recipe | str | Path | RecipeSettings) -> BranchSettings:
    """The part of a recipe that ``vega3d.patch(model, config=...)`` takes. Raises as :func:`read_recipe` does."""
    settings = recipe if isinstance(recipe, RecipeSettings) else read_recipe(recipe)
    given = settings.model_dump(include=set(BranchSettings.model_fields), exclude_unset=True)
    return BranchSettings.parse(given)


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def _strict() -> type[RecipeSettings]:
    """Recipe settings that know the keys of ``lora`` too, so that all mistakes come out in one report."""
    from peft import LoraConfig

    keys: dict[str, Any] = {
        name: (Annotated[Any, AfterValidator(_no_number_in_text)], None)
        for name in inspect.signature(LoraConfig).parameters
    }
    lora: Any = create_model("LoraSettings", __base__=Settings, **keys)
    return create_model("StrictRecipeSettings", __base__=RecipeSettings, lora=(lora | None, None))


def _no_number_in_text(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as text, and PEFT would not notice before the first step."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        raise ValueError(f"{value!r} is text; write the number with a point and without quotes: {number!r}")
    return value


def _try_lora(lora: Mapping[str, Any], path: Path) -> None:
    from peft import LoraConfig

    try:
        LoraConfig(**lora)
    except Exception as error:
        raise SettingsError(f"PEFT refuses the block `lora` of {path}: {error}") from error
