"""Where the users' own harnesses are: each wants an environment of its own."""

from __future__ import annotations

import importlib.util
import os
import sys

#: Their modules, and the variables that name an interpreter that has them.
HARNESSES = {
    "lmms-eval": ("lmms_eval", "VEGA3D_LMMS_EVAL_PYTHON"),
    "ms-swift": ("swift", "VEGA3D_SWIFT_PYTHON"),
    "vllm": ("vllm", "VEGA3D_VLLM_PYTHON"),
}


def interpreter(name: str) -> str | None:
    """This interpreter where it has the harness, else the one that the variable names, else None."""
    module, variable = HARNESSES[name]
    return sys.executable if importlib.util.find_spec(module) else os.environ.get(variable) or None
