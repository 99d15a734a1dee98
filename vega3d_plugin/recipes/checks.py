"""Check a recipe's values: every mistake in one pass, also those that only two blocks together make."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from ..contracts.errors import SettingsError, Vega3dError, near_misses
from ..contracts.printable import brief
from ..contracts.seams import CHILD
from ..contracts.settings import FusionSettings, PriorSettings, Settings, _fields_at
from ..contracts.tables import FUSERS, starts_as_identity
from ..priors.resolving import resolve
from .blocks import TuneSettings
from .known_lora import known, remember
from .layers import Layers
from .problems import Keys, SettingsClashError
from .schema import RecipeSettings


def check(layers: Layers) -> RecipeSettings | None:
    """Check the values, note every mistake in ``layers.problems``, and return the settings when there is none."""
    layers.values = values = without_branch(layers.values)
    schema = schema_for(values.get("lora"))
    parsed, found = _parsed(schema, values)
    # A block's own rules run only when its settings are right one by one. Once more without the wrong ones, they are
    # told in the same report, unless a rule is about a setting that was left out: then it may be no mistake.
    wrong = [mistake.keys for mistake in found if mistake.kind != "missing"]
    if wrong:
        found += [
            mistake
            for mistake in _parsed(schema, _without(values, wrong))[1]
            if mistake.kind == "value_error" and not any(mistake.is_about(keys) for keys in wrong)
        ]
    told = {problem.keys for problem in layers.problems}
    for mistake in found:
        if mistake.keys not in told:
            layers.wrong(mistake.message + _written(layers, mistake), mistake.keys)
    # What is parsed once is not parsed again.
    sound = {**_without(values, wrong), **_blocks(parsed, values)}
    for keys, message in (*_prior(sound, values), *_fusion(sound), *_lora(sound)):
        if keys not in wrong:
            layers.wrong(message, keys)
    if layers.problems:
        return None
    if sound.get("lora"):
        remember(sound["lora"])
    return RecipeSettings.model_validate(sound)


def _written(layers: Layers, mistake: Mistake) -> str:
    """Where settings that clash were written: one may be inherited, and unknown to whoever wrote the other."""
    places = {name: layers.places.get((*mistake.keys, name)) for name in mistake.names}
    written = {name: place for name, place in places.items() if place is not None}
    if all(place.path == layers.path for place in written.values()):
        return ""
    return f" ({', '.join(f'`{name}`: {place.words(layers.path)}' for name, place in written.items())})"


def without_branch(values: dict[str, Any]) -> dict[str, Any]:
    """``prior: null`` is one switch: what other blocks say of the branch, which then is none, goes with it."""
    if "prior" not in values or values["prior"] is not None:
        return values
    lora, tune = values.get("lora"), values.get("tune")
    kept = dict(values)
    saved = lora.get("modules_to_save") if isinstance(lora, Mapping) else None
    if isinstance(lora, Mapping) and isinstance(saved, list) and CHILD in saved:
        kept["lora"] = {**lora, "modules_to_save": [name for name in saved if name != CHILD] or None}
    if isinstance(tune, Mapping) and "branch" in tune:
        kept["tune"] = {**tune, "branch": "frozen"}
    return kept


def _blocks(parsed: RecipeSettings | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks that were given, as settings; ``lora`` stays as it was written, for PEFT."""
    if parsed is None:
        return {}
    return {name: getattr(parsed, name) for name in values if name != "lora"}


class _Lora(Settings):
    """Base of what ``lora`` may hold: YAML's own types, since PEFT itself looks at few values."""

    # The defaults are PEFT's, which are never looked at here.
    model_config = ConfigDict(strict=True, validate_default=False)


def schema_for(lora: Any) -> type[RecipeSettings]:
    """What checks the values of a recipe with this block ``lora``; PEFT is asked about a block that it has not seen."""
    return RecipeSettings if lora is None or (isinstance(lora, Mapping) and known(lora)) else strict_schema()


@lru_cache(maxsize=1)
def strict_schema() -> type[RecipeSettings]:
    """Recipe settings that know the keys of ``lora`` too, from the installed PEFT's signature."""
    from peft import LoraConfig

    try:
        hints = get_type_hints(LoraConfig, include_extras=False)
    except Exception:
        hints = {}
    # Keys are what counts: a type that cannot be looked up or is PEFT's own is left to PEFT.
    keys: dict[str, Any] = {
        name: (_checked_type(name, hints.get(name, Any)), None) for name in inspect.signature(LoraConfig).parameters
    }
    lora: Any = create_model("LoraSettings", __base__=_Lora, **keys)
    return create_model("StrictRecipeSettings", __base__=RecipeSettings, lora=(lora | None, None))


def _checked_type(name: str, hint: Any) -> Any:
    if name == "r":
        return Annotated[int, Field(gt=0, le=1 << 16)]
    if name == "lora_alpha":
        # 0 multiplies all that LoRA learns by 0.
        return Annotated[int | float, Field(gt=0)]
    if name == "lora_dropout":
        return Annotated[float, Field(ge=0, lt=1)]
    if hint is int:
        return int | float  # a scale may be a fraction
    return hint if _plain(hint) else Any


def _plain(hint: Any) -> bool:
    """True for a type that YAML's values can be checked against."""
    origin = get_origin(hint)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, list, dict):
        return all(map(_plain, get_args(hint)))
    return hint in (int, float, bool, str, list, dict, type(None))


@dataclass(frozen=True)
class Mistake:
    """What pydantic found: the setting, its name of the mistake, the message, and the settings of a block's rule."""

    keys: Keys
    kind: str
    message: str
    names: tuple[str, ...] = ()

    def is_about(self, keys: Keys) -> bool:
        """Whether this is a rule of a block that looks at a setting; one that names none looks at the whole block."""
        inside = keys[: len(self.keys)] == self.keys
        return inside and (not self.names or keys[len(self.keys) :][:1] in {(name,) for name in self.names})


def _parsed(schema: type[RecipeSettings], values: Mapping[str, Any]) -> tuple[RecipeSettings | None, list[Mistake]]:
    try:
        return schema.model_validate(values), []
    except ValidationError as error:
        return None, list(_mistakes(schema, values, error))


def _mistakes(schema: type[RecipeSettings], values: Mapping[str, Any], error: ValidationError) -> Iterator[Mistake]:
    merged: dict[Keys, tuple[str, list[str], tuple[str, ...]]] = {}
    for item in error.errors(include_url=False):
        keys = item["loc"] if item["type"] in ("extra_forbidden", "missing") else _real(item["loc"], values)
        # Of a choice of types pydantic reports each: one mistake, several ways out.
        rule = item.get("ctx", {}).get("error")
        names = rule.names if isinstance(rule, SettingsClashError) else ()
        merged.setdefault(keys, (item["type"], [], names))[1].append(_message(schema, item))
    for keys, (kind, messages, names) in merged.items():
        yield Mistake(keys, kind, "; or ".join(dict.fromkeys(messages)), names)


def _message(schema: type[RecipeSettings], item: Any) -> str:
    loc, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        known = _fields_at(schema, loc[:-1])
        close = near_misses(str(loc[-1]), known)
        # PEFT knows dozens of keys.
        return f"unknown key.{close}" + ("" if close and len(known) > 20 else f" Known: {', '.join(known) or 'none'}.")
    if kind == "missing":
        return "is missing" if len(loc) > 1 else "the block is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message if kind == "value_error" else f"{message}, found {brief(item['input'])}"


def _real(loc: Keys, values: Any) -> Keys:
    """The part of a location that is in the values: pydantic adds names of types where there is a choice."""
    for depth, key in enumerate(loc):
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return loc[:depth]
    return loc


def _without(values: Mapping[str, Any], wrong: list[Keys]) -> dict[str, Any]:
    """A copy without the settings that are wrong."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        inner = [keys[1:] for keys in wrong if keys[:1] == (key,)]
        if () in inner:
            continue
        kept[key] = _without(value, inner) if inner and isinstance(value, Mapping) else value
    return kept


def _valid(cls: type[Any], value: Any) -> Any:
    if isinstance(value, cls):
        return value
    try:
        return cls.model_validate(value)
    except ValidationError:
        return None


def _prior(values: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """What only the prior itself can judge: its contexts, presets and own options."""
    given = values.get("prior", {})
    prior = None if given is None else _valid(PriorSettings, given)
    if prior is None:
        return
    try:
        resolve(prior)
    except SettingsError as error:
        for keys, message in error.mistakes or (((), str(error)),):
            # A family's own options may stand beside those of all priors.
            beside = keys[:1] == ("options",) and keys[1:2] and keys[1] in written["prior"]
            yield ("prior", *(keys[1:] if beside else keys)), message
    except Vega3dError as error:
        yield ("prior",), str(error)


def _fusion(values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    fusion = _valid(FusionSettings, values.get("fusion") or {})
    if fusion is not None and fusion.init == "identity" and not starts_as_identity(fusion.name):
        able = ", ".join(name for name in FUSERS.names() if starts_as_identity(name))
        yield (
            ("fusion", "init"),
            f"fuser {fusion.name!r} cannot start as identity. Write `init: released`, or take one that can: {able}",
        )


def _lora(values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Whether PEFT takes the block, and whether it fits the blocks ``prior`` and ``tune``."""
    lora = values.get("lora")
    tune = _valid(TuneSettings, values.get("tune") or {})
    by_lora = [] if tune is None else [name for name, part in tune.parts(bool(lora)).items() if part.mode == "lora"]
    if not isinstance(lora, Mapping):
        for name in by_lora:
            yield ("tune", name), "is to train by LoRA, but the recipe has no block `lora`"
        return
    if tune is not None and not by_lora:
        yield (
            ("lora",),
            "no part trains by LoRA; take the block away (`lora: null`) or name the part: `tune.language: lora`",
        )
    yield from _branch_in_lora(values, lora, tune)
    if known(lora):
        return
    from peft import LoraConfig

    try:
        LoraConfig(**lora)
    except Exception as error:
        yield ("lora",), f"PEFT refuses the block: {error}"


def _branch_in_lora(
    values: Mapping[str, Any], lora: Mapping[str, Any], tune: TuneSettings | None
) -> Iterator[tuple[Keys, str]]:
    if "prior" in values and values["prior"] is None:
        return
    saved = lora.get("modules_to_save") or []
    has = isinstance(saved, list) and CHILD in saved
    trains = tune is None or tune.branch.mode == "full"
    if not has and trains:
        yield (
            ("lora", "modules_to_save"),
            f"must name {CHILD!r}: PEFT freezes and forgets the branch otherwise. Write `modules_to_save: [{CHILD}]`",
        )
