"""Scores need no torch, and neither does the verb."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vega3d_plugin.evaluation.metrics as metrics

ROOT = Path(metrics.__file__).parents[2]

#: Imports with packages in place of ``vega3d_plugin`` and ``.cli``, whose own imports are other tests' matter.
SCRIPT = """
import sys, types
for name in ("vega3d_plugin", "vega3d_plugin.cli"):
    package = types.ModuleType(name)
    package.__path__ = [{root!r} + name.removeprefix("vega3d_plugin").replace(".", "/")]
    sys.modules[name] = package
import {module}
print(sorted(set(sys.modules) & {{"torch", "transformers", "diffusers", "peft", "safetensors"}}))
"""


def heavy(module: str) -> str:
    code = SCRIPT.format(root=str(ROOT), module=module)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_no_torch_is_imported() -> None:
    assert heavy("vega3d_plugin.evaluation.metrics") == "[]"
    assert heavy("vega3d_plugin.cli.score") == "[]"
    assert heavy("vega3d_plugin.evaluation.annotations") == "[]"


def test_torch_would_be_noticed() -> None:
    assert heavy("vega3d_plugin.training.rows.encoding") != "[]"


def test_no_module_names_it_either() -> None:
    files = list(Path(metrics.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert "torch" not in {name.partition(".")[0] for name in names}, file
