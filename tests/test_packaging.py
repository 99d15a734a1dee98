"""The wheel holds every package, the recipes and the typing markers, and announces its entry points."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADAPTERS = sorted(path.parent.name for path in (ROOT / "adapters").glob("*/plugin.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that a stale build folder can neither help nor hinder.
    source = folder / "source"
    ignored = ["--exclude=.venv*", "--exclude=.git", "--exclude=build", "--exclude=*.egg-info", "--exclude=tests"]
    source.mkdir()
    packed = subprocess.run(["tar", "-C", str(ROOT), *ignored, "-cf", "-", "."], check=True, capture_output=True)
    subprocess.run(["tar", "-C", str(source), "-xf", "-"], check=True, input=packed.stdout)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_every_module_of_the_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    trees = {"vega3d_plugin": "vega3d_plugin", "recipes": "vega3d_recipes"}
    trees |= {f"adapters/{name}": name for name in ADAPTERS}
    expected = {"vega3d.py"}
    for folder, package in trees.items():
        for pattern in ("*.py", "*.yaml", "*.json", "*.jpg", "*.safetensors", "py.typed"):
            expected |= {f"{package}/{p.relative_to(ROOT / folder)}" for p in (ROOT / folder).rglob(pattern)}
    missing = expected - set(wheel.namelist())
    assert not missing
    assert {"vega3d_plugin/py.typed", "vega3d_recipes/qwen_vl/smoke.yaml"} <= expected
    assert "vega3d_recipes/smoke_data/rows.json" in expected


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    tops = {top for top in tops if not top.endswith(".dist-info")}
    assert tops == {"vega3d.py", "vega3d_plugin", "vega3d_recipes", *ADAPTERS}


def test_entry_points_and_licence(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    assert "vega3d = vega3d_plugin.cli:main" in text
    for name in ADAPTERS:
        assert f"{name.removeprefix('vega3d_')} = {name}:plugin" in text
    (metadata,) = [n for n in wheel.namelist() if n.endswith("METADATA")]
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    assert any(n.endswith("licenses/LICENSE") for n in wheel.namelist())
