"""``vega3d ls``: what can be named in ``patch`` and in a recipe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..contracts.later import LazyFuser
from ..contracts.seams import seen_with
from ..contracts.tables import FUSERS, HOSTS, PRIORS
from .output import GAP, listed, out, print_json, print_table, stacked, table

Row = dict[str, Any]

#: Width of all contexts in one line.
CONTEXTS = len("frame, views, video")


class Kind(str, Enum):
    """What can be listed."""

    hosts = "hosts"
    priors = "priors"
    fusers = "fusers"
    plugins = "plugins"
    recipes = "recipes"


def ls(
    kind: Annotated[
        Kind | None,
        typer.Argument(metavar="KIND", help="One of: hosts, priors, fusers, plugins, recipes. Default: all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """List hosts, priors, fusers, plugins or recipes.

    The names in the first column are what [bold]vega3d.patch[/] and the settings
    take.
    """
    kinds = [kind] if kind else list(Kind)
    rows = {k.value: LISTS[k][0]() for k in kinds}
    if as_json:
        print_json(rows[kind.value] if kind else rows)
        return
    for k in kinds:
        print_table(LISTS[k][1](rows[k.value]))


def _hosts() -> list[Row]:
    hosts = [HOSTS.registered(name) for name in HOSTS.names()]
    return [
        {
            "name": h.name,
            "summary": h.summary,
            "classes": list(h.classes),
            "plugin": HOSTS.plugin_of(h.name),
            "seen_with": seen_with(h),
        }
        for h in hosts
    ]


def _hosts_table(rows: list[Row]) -> Table:
    made = table("host", title="Hosts")
    for row in rows:
        from_plugin = "" if row["plugin"] == row["name"] else f"from {row['plugin']}"
        seen = f"tested with {row['seen_with']}" if row["seen_with"] else ""
        made.add_row(_entry(row["name"], stacked(row["summary"], ", ".join(row["classes"]), seen, from_plugin)))
    return made


def _entry(name: str, below: Text) -> Group:
    """A name on a line of its own, and below it, with the whole width, what it is: sentences need that."""
    return Group(Text(name, style="bold"), Padding(below, (0, 0, 0, GAP)))


def _priors() -> list[Row]:
    return [
        {
            "name": spec.name,
            "feature_dim": spec.feature_dim,
            "tap": spec.defaults.get("tap"),
            "contexts": list(spec.contexts),
            "source": spec.source,
            "licence": spec.licence,
            "parameters": spec.parameters,
            "presets": list(spec.presets),
            "options": None if spec.options is None else list(spec.options.model_fields),
            "summary": spec.summary,
            "plugin": PRIORS.plugin_of(spec.name),
        }
        for spec in PRIORS
    ]


def _priors_table(rows: list[Row]) -> Table:
    """Each prior's numbers in columns, and below them, across all columns, what it is: sentences need the width."""
    names = max((len(row["name"]) for row in rows), default=0)
    sources = max((len(_source(row)) for row in rows), default=0)

    def line(name: str, dim: str, tap: str, contexts: str) -> str:
        return (" " * GAP).join([name.ljust(names), dim.rjust(4), tap.rjust(3), contexts.ljust(CONTEXTS)])

    header = line("prior", "dim", "tap", "contexts")
    in_columns = len(header) <= out.width
    with_source = len(header) + GAP + sources <= out.width
    made = table(header + " " * GAP + "weights" if with_source else header if in_columns else "prior", title="Priors")
    for row in rows:
        dim, tap, contexts = str(_or_dash(row["feature_dim"])), str(_or_dash(row["tap"])), ", ".join(row["contexts"])
        licence = f" (licence: {row['licence']})" if row["licence"] else ""
        if in_columns:
            first = Text(line(row["name"], dim, tap, contexts))
            first.append(" " * GAP + _source(row) if with_source else "")
        else:
            first = Text(row["name"])
        below = stacked(row["summary"], _source(row) + licence)
        if with_source:
            below = Text.assemble(row["summary"], (licence, "dim"))
        elif not in_columns:
            below = stacked(f"dim {dim}, tap {tap}, {contexts}", row["summary"], _source(row) + licence)
        first.stylize("bold", 0, len(row["name"]))
        made.add_row(Group(first, Padding(below, (0, 0, 0, GAP))))
    made.caption = "dim: channels of a feature; `vega3d prior info NAME` shows all settings"
    made.caption_justify = "left"
    return made


def _source(row: Row) -> str:
    return row["source"] or "nothing to download"


def _fusers() -> list[Row]:
    return [{"name": name, **_about_fuser(name), "plugin": FUSERS.plugin_of(name)} for name in FUSERS.names()]


def _about_fuser(name: str) -> Row:
    """What it does, from what was registered: a class, or what stands for one until it is used."""
    found = FUSERS.registered(name)
    if isinstance(found, LazyFuser):
        return {"identity_start": found.identity, "options": dict(found.options), "summary": found.summary}
    parameters = list(inspect.signature(found).parameters.values())
    options = {p.name: None if p.default is p.empty else p.default for p in parameters if p.name != "hidden_size"}
    summary = _first_sentence(inspect.getdoc(found) or "")
    return {"identity_start": found.identity is not None, "options": options, "summary": summary}


def _fusers_table(rows: list[Row]) -> Table:
    made = table("fuser", "identity", "what it does", title="Fusers", whole=["fuser"])
    made.caption = "identity: a fresh patch with it computes what the host computes (init: identity)"
    for row in rows:
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        made.add_row(
            row["name"],
            "yes" if row["identity_start"] else "no",
            stacked(row["summary"], f"from {row['plugin']}{f', options: {options}' if options else ''}"),
        )
    return made


def _plugins() -> list[Row]:
    from ..hosts.installed import plugin_states

    return [
        {"name": s.name, "source": s.source, "registered": s.registered, "error": s.error or None}
        for s in plugin_states()
    ]


def _plugins_table(rows: list[Row]) -> Table:
    made = table("plugin", title="Plugins")
    for row in rows:
        brought = plugin_cell(row["registered"], row["error"] or "")
        made.add_row(_entry(row["name"], Text("\n").join([brought, Text(row["source"], style="dim")])))
    return made


def plugin_cell(registered: dict[str, list[str]], error: str) -> Text:
    """What a plugin brought, or in red why it did not load."""
    if error:
        return Text(f"broken: {error}", style="red")
    lines = [Text.assemble((f"{kind}: ", "dim"), ", ".join(names)) for kind, names in registered.items()]
    return Text("\n").join(lines) if lines else Text("hooks only", style="dim")


def _recipes() -> list[Row]:
    from ..recipes.library import list_recipes

    return [{"name": r.name, "path": str(r.path), "summary": r.summary} for r in list_recipes()]


def _recipes_table(rows: list[Row]) -> Table:
    made = table("recipe", title="Recipes")
    for row in rows:
        made.add_row(_entry(row["name"], Text(row["summary"])))
    made.caption = "`vega3d recipes show NAME` prints one, `vega3d recipes cp NAME mine.yaml` makes it yours"
    made.caption_justify = "left"
    return made


LISTS: dict[Kind, tuple[Callable[[], list[Row]], Callable[[list[Row]], Table]]] = {
    Kind.hosts: (_hosts, _hosts_table),
    Kind.priors: (_priors, _priors_table),
    Kind.fusers: (_fusers, _fusers_table),
    Kind.plugins: (_plugins, _plugins_table),
    Kind.recipes: (_recipes, _recipes_table),
}


def _or_dash(value: object) -> Text:
    return listed([] if value is None else [str(value)])


def _first_sentence(doc: str) -> str:
    """The first paragraph in one line, without the marks of reStructuredText."""
    paragraph = " ".join(doc.partition("\n\n")[0].split())
    return re.sub(r"``|:\w+:`~?|`", "", paragraph)
