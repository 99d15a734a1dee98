"""Write the tables of the pages here that come from the code.

`tests/test_docs.py` fails when a table is out of date: those of priors.md and settings.md, and the computed memory,
disk and FLOP of first_evening.md.

python docs/refresh.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from vega3d_plugin.cli.prior.info import attributes, type_text
from vega3d_plugin.contracts.settings import (
    BranchSettings,
    FusionSettings,
    PriorSettings,
    ProjectorSettings,
    Settings,
)
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors import PriorSpec
from vega3d_plugin.recipes.blocks import DataSettings, StoreSettings, TrainSettings, TuneSettings
from vega3d_plugin.recipes.schema import HostSettings, RecipeSettings

sys.path.insert(0, str(Path(__file__).parent))
from first_evening_figures import figures
from settings_effects import EFFECTS

FOLDER = Path(__file__).parent
TABLE = re.compile(r"(<!-- table (\w+): from docs/refresh.py -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
#: A reference to a module or class in a docstring.
_PLACE = re.compile(r":\w+:`~?([\w.]+)`")
#: The blocks of settings.md, in its order, each with the class that checks it.
BLOCKS: dict[str, type[Settings]] = {
    "prior": PriorSettings,
    "fusion": FusionSettings,
    "projector": ProjectorSettings,
    "branch": BranchSettings,
    "recipe": RecipeSettings,
    "host": HostSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "tune": TuneSettings,
    "store": StoreSettings,
}


def priors_table() -> str:
    """One row for each built-in prior."""
    rows = [
        "| prior | source | dim | tap | timestep | size | contexts | memory | licence of the weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    priors = plugin_manager().priors
    rows += [_row(spec) for spec in priors if priors.plugin_of(spec.name) == "builtin_priors"]
    return "\n".join(rows)


def own_settings(block: str) -> list[str]:
    """The settings of a block that are no blocks themselves; those of a recipe that a branch has are the branch's."""
    names = list(BLOCKS[block].model_fields)
    if block == "recipe":
        names = [name for name in names if name not in BranchSettings.model_fields]
    # Blocks have a table of their own; what `lora` takes is PEFT's.
    return [name for name in names if name not in ({*BLOCKS, "lora"} if block in ("branch", "recipe") else ())]


def settings_table(block: str) -> str:
    """One row for each setting of a block."""
    kind = BLOCKS[block]
    described = attributes(kind)
    rows = ["| setting | default | values | meaning | features change | cost |", "|---|---|---|---|---|---|"]
    for name in own_settings(block):
        field = kind.model_fields[name]
        default = field.get_default(call_default_factory=True)
        cells = [
            f"`{name}`",
            "must be given" if default is PydanticUndefined else f"`{_shown(default)}`",
            f"`{type_text(field.annotation)}`",
            _PLACE.sub(r"\1", described[name]),
            *EFFECTS[block][name],
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "priors": priors_table,
    "first_evening": figures,
    **{block: (lambda block=block: settings_table(block)) for block in BLOCKS},
}


def pages() -> list[Path]:
    """The pages with tables from here."""
    return [page for page in sorted(FOLDER.glob("*.md")) if TABLE.search(page.read_text(encoding="utf-8"))]


def refreshed(text: str) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def _shown(value: Any) -> str:
    """As YAML has it."""
    plain = to_jsonable_python(value)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    if isinstance(plain, dict) and "mode" in plain:
        return str(plain["mode"])
    return str(plain) or "''"


def _row(spec: PriorSpec) -> str:
    defaults = {**PriorSettings().to_dict(), **spec.defaults}
    size = "x".join(str(side) for side in defaults["size"]) if defaults.get("size") else "-"
    uses_noise = "timestep" in getattr(spec.prior_class(), "identity", ())
    cells = [
        f"`{spec.name}`",
        f"`{spec.source}`" if spec.source else "-",
        str(spec.feature_dim or "any"),
        "-" if defaults.get("tap") is None else str(defaults["tap"]),
        str(defaults["timestep"]) if uses_noise else "-",
        size,
        ", ".join(spec.contexts),
        f"{2 * spec.parameters:.2g} GB" if spec.parameters else "-",
        spec.licence or "-",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for page in pages():
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
