"""From a recipe's file to its values: what it extends, what overrides it, and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contracts.documents import MAX_DEPTH
from ..contracts.errors import UnknownNameError
from ..contracts.paths import names_file, path_problem
from ..contracts.printable import brief
from ..storage.versions import library_version
from .problems import Keys, Place, Problem, RecipeError
from .yaml import parse_value, read_document

#: Of the schema; a recipe of a newer one is refused.
VERSION = 1

#: Always known: the folder of the file that names it.
FOLDER = "RECIPE_DIR"

#: Recipes that extend one another, at most.
MAX_CHAIN = 32

VARIABLE = re.compile(r"\$\{([^}]*)\}")

#: Finds a recipe that comes with the library; raises UnknownNameError.
Find = Callable[[str], Path]


@dataclass
class Layers:
    """A recipe's values before they are checked.

    Attributes:
        path: the recipe's file.
        values: of all layers, merged; without ``extends``.
        places: where each setting was written.
        problems: what was found to be wrong on the way.
        files: the recipe's file and all it extends, in that order.
        unset: declared variables of the environment that are used but not set, with their descriptions.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: tuple[Path, ...] = ()
    unset: dict[str, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> Place | None:
        """Where a setting was written, or else the nearest one around it; None for the whole recipe."""
        return next((self.places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.places), None)

    def wrong(self, message: str, keys: Keys) -> None:
        """Note a mistake."""
        self.problems.append(Problem(message, self.place(keys), keys))


def gather(path: Path, overrides: Sequence[str], find: Find, blocks: Collection[str] | None = None) -> Layers:
    """Read a recipe and all it extends, apply overrides, and put in the environment's variables.

    Args:
        path: the recipe's file.
        overrides: such as ``prior.tap=16``; each replaces the setting it names, and a later one an earlier one. A
            setting inside a block that an earlier one turned off is a mistake.
        find: the file of a recipe that comes with the library, by name.
        blocks: blocks whose variables must be set; elsewhere those that are not set stay as they are written.
            None: all.

    Raises:
        RecipeError: a file is missing or unreadable, extends itself, or is of a newer version; then nothing more can
            be said about the settings. Other mistakes are noted in ``problems``.
    """
    layers = _chain(path, find, ())
    given: dict[Keys, tuple[Place, Any]] = {}
    for text in overrides:
        _override(layers, text, given)
    _expand(layers, blocks)
    return layers


def _chain(path: Path, find: Find, above: tuple[Path, ...]) -> Layers:
    document = read_document(path)
    places = {keys: Place(path, line) for keys, line in document.lines.items() if keys}
    own = Layers(path, document.values, places, list(document.problems), (path,))
    _check_version(own)
    _put_folder(own)
    if "extends" not in own.values:
        return own
    target = _target(own, own.values.pop("extends"), find)
    place = own.place(("extends",))
    chain = (*above, path)
    same = next((i for i, file in enumerate(chain) if _same(file, target)), None)
    if same is not None:
        names = " -> ".join(str(file) for file in (*chain[same:], target))
        raise RecipeError(chain[0], [Problem(f"recipes extend each other in a circle: {names}", place, ("extends",))])
    if len(chain) >= MAX_CHAIN:
        message = f"{MAX_CHAIN} recipes extend one another up to here, and no more are read"
        raise RecipeError(path, [Problem(message, place, ("extends",))])
    base = _chain(target, find, chain)
    return _merged(base, own)


def _check_version(layers: Layers) -> None:
    version = layers.values.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        message = (
            f"the recipe is of version {version}, this vega3d-plugin {library_version()} reads version {VERSION}. "
            "Install a newer vega3d-plugin, or take a recipe that comes with this one (`vega3d recipes ls`)."
        )
        raise RecipeError(layers.path, [Problem(message, layers.place(("version",)), ("version",))])


def _target(layers: Layers, extends: Any, find: Find) -> Path:
    """The file that ``extends`` means: a path relative to its own file, or the name of a recipe."""
    keys = ("extends",)

    def refused(message: str) -> RecipeError:
        return RecipeError(layers.path, [*layers.problems, Problem(message, layers.place(keys), keys)])

    if not isinstance(extends, str) or not extends:
        raise refused(f"must be the name of a recipe or a relative path, found {brief(extends)}")
    problem = path_problem(extends)
    if problem:
        raise refused(f"{brief(extends)} cannot be the name of a recipe or a path: {problem}")
    if VARIABLE.search(extends):
        raise refused("takes no variables; write the name of a recipe or a relative path")
    path = layers.path.parent / extends
    if names_file(path):
        return path
    if extends.startswith(".") or Path(extends).is_absolute():
        raise refused(f"there is no file {path}")
    try:
        return find(extends)
    except UnknownNameError as error:
        raise refused(f"{error} There is no file {path} either.") from None


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _merged(base: Layers, own: Layers) -> Layers:
    places = dict(base.places)
    values = _deep(base.values, own.values, (), places)
    places.update(own.places)
    return Layers(own.path, values, places, [*own.problems, *base.problems], (*own.files, *base.files))


def _deep(base: Mapping[str, Any], own: Mapping[str, Any], keys: Keys, places: dict[Keys, Place]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced, and the lines of what was replaced are forgotten."""
    merged = dict(base)
    for key, value in own.items():
        path = (*keys, key)
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _deep(merged[key], value, path, places)
            continue
        merged[key] = value
        _forget(path, places)
    return merged


def _forget(keys: Keys, places: dict[Keys, Place]) -> None:
    for below in [path for path in places if path[: len(keys)] == keys]:
        del places[below]


def _override(layers: Layers, text: str, given: dict[Keys, tuple[Place, Any]]) -> None:
    """Apply one override; ``given`` holds those before it, which it must not contradict."""
    place = Place(None, override=text)
    name, equals, written = text.partition("=")
    keys = tuple(name.strip().split("."))

    def wrong(message: str) -> None:
        layers.problems.append(Problem(message, place))

    if not equals or not all(keys):
        return wrong("an override is a setting, `=` and a value, such as `prior.tap=16`")
    if len(keys) > MAX_DEPTH // 2:
        return wrong(f"names a setting within {len(keys) - 1} others, and no setting lies so deep")
    if not written.strip():
        return wrong(f"has no value; to take a setting away write `{name}=null`")
    if keys[0] == "extends":
        return wrong("`extends` cannot be overridden; name another recipe instead")
    try:
        value = parse_value(written)
    except ValueError as error:
        return wrong(str(error))
    problem = _contradiction(keys, value, given, layers.path)
    if problem:
        return wrong(problem)
    given[keys] = (place, value)
    inner = layers.values
    for depth, key in enumerate(keys[:-1], start=1):
        below = inner.get(key)
        if below is not None and not isinstance(below, dict):
            around = ".".join(keys[:depth])
            return wrong(f"`{around}` is {brief(below)}, which has no `{keys[depth]}`; give it whole: `{around}=...`")
        # A copy, since mappings of a base may be shared.
        inner[key] = dict(below or {})
        inner = inner[key]
        layers.places.setdefault(keys[:depth], place)
    inner[keys[-1]] = value
    _forget(keys, layers.places)
    layers.places[keys] = place
    return None


def _contradiction(keys: Keys, value: Any, given: Mapping[Keys, tuple[Place, Any]], path: Path) -> str:
    """Why an override cannot stand beside an earlier one of the same command; an empty text if it can.

    Of two values for one setting the later one wins, as on other command lines. But `prior.name=...` after `prior=null`
    would turn on what was turned off, and run another experiment than the one that was meant.
    """
    for earlier, (place, before) in given.items():
        if earlier != keys and earlier == keys[: len(earlier)] and before is None and value is not None:
            block = ".".join(map(str, earlier))
            return f"{place.words(path)} turns the whole of `{block}` off. Remove one of the two."
    return ""


def _put_folder(layers: Layers) -> None:
    """Put in the file's own folder, while it is known which file a value comes from."""
    folder = str(layers.path.parent.resolve())
    layers.values = _texts(layers.values, (), lambda text, _: text.replace(f"${{{FOLDER}}}", folder))


def _expand(layers: Layers, blocks: Collection[str] | None) -> None:
    declared = layers.values.get("env")
    declared = declared if isinstance(declared, dict) else {}

    def expanded(text: str, keys: Keys) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name not in declared:
                layers.wrong(
                    f"uses ${{{name}}}, which the recipe does not declare. Declare it: "
                    f"`env: {{{name or 'NAME'}: what it is}}`",
                    keys,
                )
                return found[0]
            if os.environ.get(name):
                return os.environ[name]
            layers.unset[name] = str(declared[name])
            if blocks is None or keys[0] in blocks:
                setting = ".".join(key for key in keys if isinstance(key, str))
                layers.wrong(
                    f"needs the environment variable {name}, which is not set: {declared[name]}. Set it "
                    f"(`export {name}=...`) or override the setting (`{setting}=...`)",
                    keys,
                )
            return found[0]

        return VARIABLE.sub(value, text) if keys[0] != "env" else text

    layers.values = _texts(layers.values, (), expanded)


def _texts(value: Any, keys: Keys, change: Callable[[str, Keys], str]) -> Any:
    """The same values with every text changed."""
    if isinstance(value, str):
        return change(value, keys)
    if isinstance(value, Mapping):
        return {key: _texts(item, (*keys, key), change) for key, item in value.items()}
    if isinstance(value, list):
        return [_texts(item, (*keys, index), change) for index, item in enumerate(value)]
    return value


def leaves(values: Mapping[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every setting that is no mapping, as ``("prior.tap", 20)``; an empty mapping counts as one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*keys, key))
        else:
            yield ".".join((*keys, key)), value
