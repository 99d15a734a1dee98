"""The pages say what the code does: tables made from it, messages quoted from it, links that lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vega3d
from vega3d_plugin.contracts.seams import seen_with
from vega3d_plugin.priors.wan.prior import WanPrior
from vega3d_plugin.recipes.library import read_recipe

DOCS = Path(__file__).parents[1] / "docs"
#: Plugins with hosts that come with this library.
SHIPPED = ("qwen_vl", "llava_video", "openvla", "transformers")


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "priors.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def refresh() -> Any:
    spec = importlib.util.spec_from_file_location("refresh", DOCS / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["first_evening.md", "priors.md", "settings.md"])
def test_the_tables_of_a_page_are_those_of_the_code(refresh: Any, name: str) -> None:
    assert DOCS / name in refresh.pages()
    text = (DOCS / name).read_text(encoding="utf-8")
    assert refresh.refreshed(text) == text, "run python docs/refresh.py"


def test_every_setting_has_its_row(refresh: Any) -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    for block in refresh.BLOCKS:
        table = text.partition(f"<!-- table {block}: ")[2].partition("<!-- end")[0]
        rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert rows == refresh.own_settings(block)
        assert set(rows) == set(refresh.EFFECTS[block])
    # Nothing that a recipe may say is left out: what is no row is a block.
    everything = {*refresh.BLOCKS, *refresh.own_settings("branch"), *refresh.own_settings("recipe"), "lora"}
    assert set(refresh.RecipeSettings.model_fields) <= everything


@pytest.mark.parametrize("context", ["frame", "views"])
def test_the_table_says_which_settings_change_features(refresh: Any, context: str) -> None:
    """By the fingerprint, which a feature store asks."""
    other = {
        "timestep": 400, "shift": 3.0, "tap": 1, "size": [48, 80], "resize": "stretch", "seed": 1, "window": 5,
        "overlap": 2, "int8": True, "chunk_frames": 1, "max_tokens": 4096, "fast": False, "offload": True,
        "dtype": "float16", "context": "video",
    }  # fmt: skip
    if context == "frame":
        # What else changes a feature does so in every context.
        other = {name: other[name] for name in ("window", "overlap")}
    base = vega3d.load_prior("tiny-wan", context=context).fingerprint
    for name, value in other.items():
        told = refresh.EFFECTS["prior"][name][0]
        expected = told == "yes" or (told == "yes, unless `context: frame`" and context != "frame")
        changed = vega3d.load_prior("tiny-wan", **{"context": context, name: value}).fingerprint != base
        assert changed is expected, name


def test_every_builtin_prior_is_in_it(page: str) -> None:
    priors = vega3d.plugin_manager().priors
    own = [name for name in vega3d.list_priors() if priors.plugin_of(name) == "builtin_priors"]
    assert len(own) > 30
    for name in own:
        assert f"| `{name}` |" in page, name


def test_the_pieces_of_the_fast_path_are_those_of_the_code(page: str) -> None:
    section = page.partition("## The fast path")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {r.name for r in WanPrior.reductions}


def test_the_table_of_hosts_is_that_of_the_code() -> None:
    page = (DOCS / "hosts.md").read_text(encoding="utf-8")
    adapters = {adapter.name: adapter for adapter in vega3d.plugin_manager().hosts}
    rows = {row.split("`")[1]: row for row in page.splitlines() if "([page]" in row}
    assert {*rows} == {name for name in adapters if vega3d.plugin_manager().hosts.plugin_of(name) in SHIPPED}
    for name, row in rows.items():
        versions = re.findall(r"\d[\w.]+|\b[0-9a-f]{7}\b", seen_with(adapters[name]))
        assert versions
        assert [version for version in versions if version not in row] == []
        named = [class_name.removesuffix("ForConditionalGeneration") for class_name in adapters[name].classes]
        if name != "transformers":
            assert [n for n in named if n.removesuffix("ForCausalLM") not in row] == []


def test_the_pattern_for_qwen_vls_lora_is_that_of_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "data")
    page = (DOCS / "qwen_vl.md").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'^language_model = r"(.+)"$', page, re.MULTILINE)
    lora = read_recipe("qwen_vl/lora_spatial_reasoning").lora
    assert lora is not None
    assert lora["target_modules"] == pattern


def test_troubleshooting_quotes_what_the_library_says() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^> `(.+)`$", page, re.MULTILINE)
    assert len(quotes) > 20
    said = [text for root in ("vega3d_plugin", "adapters") for text in _texts(DOCS.parent / root)]
    for quote in quotes:
        assert any(quote in text for text in said), quote


def _texts(folder: Path) -> Iterator[str]:
    """Strings of the code, as they are put together; ``{}`` for what is filled in."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
