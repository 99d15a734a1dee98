"""Parts of installed packages whose own ``__init__`` wants what is not needed here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


def folder_of(package: str, requirement: str) -> Path:
    """Where a package lies; ``SystemExit`` with the command that installs it where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed here. Run `pip install --no-deps {requirement}`.")
    return Path(next(iter(spec.submodule_search_locations)))


def module_of(package: str, requirement: str, module: str) -> Any:
    """A module of a package, imported without the package's own ``__init__``."""
    alias = f"parts_of_{package}"
    if alias not in sys.modules:
        found = types.ModuleType(alias)
        found.__path__ = [str(folder_of(package, requirement))]
        sys.modules[alias] = found
    return importlib.import_module(f"{alias}.{module}")
