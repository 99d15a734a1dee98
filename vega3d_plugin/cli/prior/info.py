"""``vega3d prior info``: what a prior is, from its registration alone."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from rich.table import Table
from rich.text import Text

from ...contracts.specs import PriorSpec
from ...contracts.tables import PRIORS
from ..output import GAP, out, print_json, print_pairs, stacked
from .class_facts import class_facts

if TYPE_CHECKING:
    from ...contracts.settings import Settings

BYTES = 2  # of a parameter in bfloat16

#: What a setting means that is left open.
OPEN = {
    "window": "the whole clip",
    "chunk_frames": "as many as max_tokens allows",
    "dtype": "bfloat16 on CUDA, float32 elsewhere",
    "device": "wherever the frames are",
}
#: Shown elsewhere, or none of the prior's own.
LEFT_OUT = ("name", "pretrained", "revision", "preset", "device", "options")
#: Settings that matter only where frames see each other.
JOINT = ("window", "overlap")
#: Settings that matter only to priors which say so in ``identity``.
NOISE = ("timestep", "shift", "seed")


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A prior, see `vega3d ls priors`.")],
    preset: Annotated[str | None, typer.Option(help="Show the settings with this preset, such as: released.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show what a prior is: weights, memory, settings, options, fast path.

    Nothing is loaded or downloaded.

    \b
      vega3d prior info wan2.1-t2v-1.3b
      vega3d prior info wan2.1-t2v-1.3b --preset released
    """
    spec = PRIORS.get(name)
    found = describe(spec, preset)
    if as_json:
        print_json(found)
        return
    out.print(Text(spec.name, style="bold"))
    out.print(Text(spec.summary))
    out.print()
    print_pairs(_facts(found))
    out.print(f"\n[bold]Settings[/] [dim]with preset {preset}[/]" if preset else "\n[bold]Default settings[/]")
    print_pairs(_settings(spec, found))
    for other, changes in found["presets"].items():
        out.print(Text.assemble("\n", (f"Preset {other}", "bold"), (" changes", "dim")))
        print_pairs({key: f"{_value(old)} -> {_value(new)}" for key, (old, new) in changes.items()})
    out.print("\n[bold]Own options[/]")
    _print_options(found["options"])
    out.print("\n[bold]Fast path[/] [dim]exact reductions of the work; the setting fast takes their names[/]")
    _print_reductions(spec, found["reductions"])


def describe(spec: PriorSpec, preset: str | None = None) -> dict[str, Any]:
    """What is known of a prior before it is loaded; plain values, as JSON has them.

    Raises:
        SettingsError: it has no such preset.
    """
    default = _resolved(spec)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "source": spec.source,
        "feature_dim": spec.feature_dim,
        "licence": spec.licence,
        "parameters": spec.parameters,
        "gigabytes": None if spec.parameters is None else round(spec.parameters * BYTES, 2),
        "taps": spec.taps,
        "contexts": list(spec.contexts),
        "prompt": spec.prompt is not None,
        "plugin": PRIORS.plugin_of(spec.name),
        "settings": _resolved(spec, preset),
        "presets": {name: _changes(default, _resolved(spec, name)) for name in spec.presets},
        "options": options_of(spec),
        "reductions": class_facts(spec)["reductions"],
    }


def options_of(spec: PriorSpec) -> list[dict[str, Any]] | None:
    """Name, type, default and description of each option of its family; None where it takes any."""
    if spec.options is None:
        return None
    described, default = attributes(spec.options), _default_options(spec)
    return [
        {
            "name": name,
            "type": type_text(field.annotation) + _limits(field.metadata),
            "default": default.get(name),
            "required": name not in default,
            "description": field.description or described.get(name, ""),
        }
        for name, field in spec.options.model_fields.items()
    ]


def attributes(cls: type[Settings]) -> dict[str, str]:
    """The descriptions in the ``Attributes`` section of a class's docstring, by name, each in one line."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    # The section ends at the first line that is not indented.
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(section).splitlines():
        if line[:1].strip():
            head, _, line = line.partition(":")
            names = [name.strip() for name in head.split(",")]
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip().replace("``", "")
    return found


def type_text(annotation: Any) -> str:
    """A type as one reads it: ``int | none``, ``first | released``, ``[int, int]``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (None, NoneType):
        return "none"
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin in (Union, UnionType):
        return " | ".join(type_text(part) for part in inner)
    if origin in (tuple, list):
        parts = [type_text(part) for part in inner if part is not Ellipsis]
        return f"[{', '.join(parts)}{', ...' if origin is list or Ellipsis in inner else ''}]"
    return str(getattr(annotation, "__name__", annotation))


def _resolved(spec: PriorSpec, preset: str | None = None) -> dict[str, Any]:
    """All settings; options that the user has to give are left out."""
    from ...contracts.settings import PriorSettings
    from ...priors.resolving import resolve

    options = _default_options(spec)
    if spec.options is None or len(options) == len(spec.options.model_fields) or preset not in (None, *spec.presets):
        return resolve(PriorSettings(name=spec.name, preset=preset)).to_dict()
    changes: Mapping[str, Any] = spec.presets[preset] if preset else {}
    layers: tuple[Mapping[str, Any], ...] = ({"pretrained": spec.source or None}, spec.defaults, changes)
    merged = {key: value for layer in layers for key, value in layer.items()}
    options |= changes.get("options", {})
    return PriorSettings.parse({**merged, "name": spec.name, "preset": preset, "options": options}).to_dict()


def _default_options(spec: PriorSpec) -> dict[str, Any]:
    """The family's own settings that have a default, plain values."""
    from pydantic_core import to_jsonable_python

    fields = {} if spec.options is None else spec.options.model_fields
    own: Mapping[str, Any] = spec.defaults.get("options", {})
    given = {name: f.get_default(call_default_factory=True) for name, f in fields.items() if not f.is_required()}
    found: dict[str, Any] = to_jsonable_python({**given, **own})
    return found


def _limits(metadata: Sequence[Any]) -> str:
    """What pydantic checks beside the type: `` >= 0``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(m, key)}" for m in metadata for key, sign in signs.items() if hasattr(m, key)]
    return f" {', '.join(found)}" if found else ""


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """Settings by name, those of the family as ``options.NAME``, with both values where they differ."""
    flat = [{**s, **{f"options.{key}": value for key, value in s["options"].items()}} for s in (old, new)]
    names = [name for name in flat[1] if name not in ("preset", "options")]
    return {name: [flat[0].get(name), flat[1][name]] for name in names if flat[0].get(name) != flat[1][name]}


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    memory = "not known before loading"
    if found["parameters"] is not None:
        memory = (
            f"{found['parameters']:g} billion up to the tap: {found['gigabytes']:g} GB in bfloat16, activations on top"
        )
    prompt = f"empty; `vega3d prior export-prompt {found['name']}` writes it to a file"
    dim = found["feature_dim"]
    return {
        "source": found["source"] or "nothing to download",
        "licence": found["licence"] or "not stated; see the source",
        "features": "not known before loading" if dim is None else f"{dim} channels",
        "parameters": memory,
        **({"taps": f"{found['taps']}; negative from the end"} if found["taps"] else {}),
        "contexts": ", ".join(found["contexts"]),
        "prompt": prompt if found["prompt"] else "none to export",
        "plugin": found["plugin"],
    }


def _settings(spec: PriorSpec, found: dict[str, Any]) -> dict[str, str]:
    hidden = set(LEFT_OUT)
    if found["contexts"] == ["frame"]:
        hidden |= set(JOINT)
    identity = class_facts(spec)["identity"]
    if identity is not None:
        hidden |= set(NOISE) - set(identity)
    return {
        key: OPEN.get(key, "-") if value is None else _value(value)
        for key, value in found["settings"].items()
        if key not in hidden
    }


def _value(value: Any) -> str:
    """As YAML has it, and as ``--set`` takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"


def _print_options(options: list[dict[str, Any]] | None) -> None:
    if not options:
        print_pairs({"any, which the prior itself checks" if options is None else "none": ""})
        return
    _print_rows(
        (
            stacked(o["name"], o["type"], "required" if o["required"] else f"default {_value(o['default'])}"),
            Text(o["description"]),
        )
        for o in options
    )


def _print_reductions(spec: PriorSpec, reductions: list[dict[str, str]]) -> None:
    _print_rows((Text(r["name"]), Text(r["why"], style="dim")) for r in reductions)
    if spec.kind is None:
        print_pairs({"and what only the loaded prior knows" if reductions else "known once it is loaded": ""})
    elif not reductions:
        print_pairs({"none": ""})


def _print_rows(rows: Iterable[tuple[Text, Text]]) -> None:
    made = Table.grid(padding=(0, GAP, 0, 0))
    for first, second in rows:
        made.add_row("", first, second)
    if made.row_count:
        out.print(made)
