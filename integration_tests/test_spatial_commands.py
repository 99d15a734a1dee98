"""Each printed command for VG-LLM's script fits the checkout it is printed for: flags, names of data, files."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from host_sources import host_source
from transformers import TrainingArguments

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "qwen_vl" / "full_spatial_reasoning.yaml"
PAGE = ROOT / "docs" / "host_scripts.md"
SCRIPT = "src/qwen_vl/train/train_qwen.py"
#: Needed by the sampler of both.
SORTED = "group_by_modality_length"


def commands(path: Path) -> dict[str, dict[str, str]]:
    """Flags and values of the command that comes after the words "a checkout of NAME"."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()]
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found = re.findall(rf"checkout of (VG-LLM|VEGA-3D)\b[^$]*?{re.escape(SCRIPT)} (.*)", text)
    return {name: dict(re.findall(r"--(\w+) ([^\s-]\S*)", flags)) for name, flags in found}


def fields(source: Path) -> set[str]:
    tree = ast.parse((source / "src/qwen_vl/train/argument.py").read_text())
    own = {
        line.target.id
        for line in ast.walk(tree)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    # The ratio is in transformers 4.50, for which both are written, and no longer in 5.
    return own | {field.name for field in dataclasses.fields(TrainingArguments)} | {"warmup_ratio"}


def data_names(source: Path) -> set[str]:
    tree = ast.parse((source / "src/qwen_vl/data/__init__.py").read_text())
    table = next(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "data_dict"
    )
    assert isinstance(table, ast.Dict)
    return {key.value for key in table.keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize("path", [RECIPE, PAGE], ids=lambda path: path.name)
def test_each_checkout_has_its_command(path: Path) -> None:
    found = commands(path)
    assert {*found} == {"VG-LLM", "VEGA-3D"}
    assert found["VG-LLM"]["dataset_use"] != found["VEGA-3D"]["dataset_use"]
    assert all(flags[SORTED] == "True" for flags in found.values())


@pytest.mark.parametrize("path", [RECIPE, PAGE], ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["VG-LLM", "VEGA-3D"])
def test_the_command_fits_its_checkout(name: str, path: Path) -> None:
    source = host_source(name)
    if source is None:
        pytest.skip(f"no checkout of {name}")
    flags = commands(path)[name]
    assert (source / SCRIPT).is_file()
    assert (source / flags["deepspeed"]).is_file()
    assert {*flags} <= fields(source)
    names = [re.sub(r"%\d+$", "", word) for word in flags["dataset_use"].split(",")]
    assert {*names} <= data_names(source)
    # Its sampler asks for an argument that is nowhere defined, unless rows are sorted by modality.
    sampler = (source / "src/qwen_vl/train/sampler.py").read_text()
    assert f"self.args.{SORTED}_auto" in sampler
    assert f"{SORTED}_auto" not in fields(source)
