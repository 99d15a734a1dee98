"""LIBERO's tasks as its evaluations open them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

#: `make test-libero` sets this, and nothing may then be absent.
MUST = bool(os.environ.get("VEGA3D_LIBERO"))
#: Marks tests that need the simulator.
needs_libero = pytest.mark.skipif(
    not MUST and importlib.util.find_spec("libero") is None,
    reason="LIBERO's simulator is not installed here: make test-libero",
)


def environment_of(suite: str, number: int, *, size: int = 128, state: int = 0, depth: bool = False) -> Any:
    """A running task with both cameras, in one of its initial states, which is kept as ``.state``."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    tasks = benchmark.get_benchmark_dict()[suite]()
    task = tasks.get_task(number)
    file = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    environment = OffScreenRenderEnv(
        bddl_file_name=os.fspath(file), camera_heights=size, camera_widths=size, camera_depths=depth
    )
    environment.seed(0)
    environment.reset()
    environment.state = tasks.get_task_init_states(number)[state]
    environment.task = task
    environment.first = environment.set_init_state(environment.state)
    return environment
