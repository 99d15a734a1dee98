"""Two processes on the CPU that find the tests' modules and each other (gloo)."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
#: Seconds that one process waits for the other.
TIMEOUT = 60


def spawn(worker: Callable[..., Any], folder: Path, *given: Any) -> None:
    """Run ``worker(rank, folder, *given)`` in two processes; an error in one is raised here."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent / "tests")]))
        patched.setenv("VEGA3D_CACHE", str(folder))
        mp.spawn(worker, args=(str(folder), *given), nprocs=WORLD, join=True)


def start(rank: int, folder: str) -> None:
    """Join the other process; the first thing that a worker does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=TIMEOUT),
    )  # fmt: skip
