"""Write the tables of the pages here that come from the code. `tests/test_docs.py` fails when they are out of date.

python docs/refresh.py
"""

from __future__ import annotations

import re
from pathlib import Path

from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors import PriorSpec

PAGE = Path(__file__).with_name("priors.md")
TABLE = re.compile(r"(<!-- table: from docs/refresh.py -->\n).*?(\n<!-- end of table -->)", re.DOTALL)


def priors_table() -> str:
    """One row for each built-in prior."""
    rows = [
        "| prior | source | dim | tap | timestep | size | contexts | memory | licence of the weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    priors = plugin_manager().priors
    rows += [_row(spec) for spec in priors if priors.plugin_of(spec.name) == "builtin_priors"]
    return "\n".join(rows)


def refreshed(text: str) -> str:
    """A page with its table made anew."""
    return TABLE.sub(lambda match: match[1] + priors_table() + match[2], text)


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
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
