"""The plan of the library: rooms in an order, imports go down only, and no circle anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.arrows import arrows, circle, gathered

ROOT = Path(__file__).parents[1] / "vega3d_plugin"
#: Every room, each standing on those before it; the one place where this order is written down.
ROOMS = (
    "contracts",
    "storage",
    "scenes",
    "priors",
    "features",
    "analysis",
    "branch",
    "hookspecs",
    "builtin",
    "plugins",
    "hosts",
    "patching",
    "checkpoints",
    "recipes",
    "training",
    "evaluation",
    "cli",
    "doors",
)
#: What may be in the root, so that a reader sees the plan at once.
ENTRIES = 20


def room(module: str) -> str:
    """``vega3d_plugin.priors.wan.vae`` lies in ``priors``; the root itself is the front of the house."""
    return [*module.split("."), "__init__"][1]


def upward(found: dict[str, set[str]], rooms: tuple[str, ...]) -> list[str]:
    """Arrows from a lower room to a higher one."""
    return sorted(
        f"{source} imports {target}"
        for source, targets in found.items()
        for target in targets
        if "__init__" not in (room(source), room(target)) and rooms.index(room(target)) > rooms.index(room(source))
    )


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    return arrows(ROOT)


def test_every_room_has_its_place(found: dict[str, set[str]]) -> None:
    assert {room(module) for module in found} == {*ROOMS, "__init__"}


def test_no_import_goes_up(found: dict[str, set[str]]) -> None:
    assert upward(found, ROOMS) == []


def test_nothing_below_the_front_imports_the_front(found: dict[str, set[str]]) -> None:
    assert [module for module, targets in found.items() if "vega3d_plugin" in targets] == []


def test_no_circle_of_modules(found: dict[str, set[str]]) -> None:
    assert circle(found) == []


def test_no_circle_of_folders(found: dict[str, set[str]]) -> None:
    assert circle(gathered(found, {module: _place(module) for module in found})) == []


def test_an_arrow_up_and_a_circle_would_be_seen(found: dict[str, set[str]]) -> None:
    low, high = "vega3d_plugin.contracts.clips", "vega3d_plugin.cli.app"
    worse = {**found, low: {*found[low], high}}
    assert upward(worse, ROOMS) == [f"{low} imports {high}"]
    assert low in circle(worse)


def test_imports_of_every_form_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "a").mkdir(parents=True)
    for path, text in {
        "__init__.py": "",
        "a/__init__.py": "from .one import x",
        "a/one.py": "def f():\n    from ..b import y",
        "b.py": "import house.c\nfrom . import d\nfrom house.a import one",
        "c.py": "",
        "d.py": "import os",
    }.items():
        (package / path).write_text(text)
    seen = arrows(package)
    assert seen == {
        "house": set(),
        "house.a": {"house.a.one"},
        "house.a.one": {"house.b"},
        "house.b": {"house.c", "house.d", "house.a.one"},
        "house.c": set(),
        "house.d": set(),
    }
    assert circle(seen) == ["house.a.one", "house.b", "house.a.one"]


def test_the_root_is_a_plan_and_not_a_heap() -> None:
    entries = sorted(path.name for path in ROOT.iterdir() if path.name != "__pycache__")
    assert len(entries) <= ENTRIES, entries


def test_every_folder_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("__init__.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def _place(module: str) -> str:
    """A folder inside a room is one place; what lies in a room directly is a place of its own."""
    parts = module.split(".")
    inner = parts[:3] if len(parts) > 3 or ROOT.joinpath(*parts[1:]).is_dir() else parts
    return ".".join(inner)
