"""The short version of ``benchmarks/faults``: each attack once. The long one is run by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"
MODULES = sorted(path.stem for path in FAULTS.glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "threads" else name for name in MODULES]
)
def test_no_attack_gets_through(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAULTS))
    spec = importlib.util.spec_from_file_location(f"faults_{name}", FAULTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    rows = module.run(0)
    assert rows
    for row in rows:
        assert row["trials"] >= 1, row
        assert (row["wrong"], row["raw"], row["leftovers"]) == (0, 0, 0), row
