"""Two processes on the CPU that find the tests' modules and each other (gloo); commands that start processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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


def run_whole(
    command: Sequence[object], timeout: float, env: Mapping[str, str], cwd: Path | str | None = None
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` with what was said as text; at the timeout, the processes that it started end too.

    A launcher that is killed leaves its workers behind, which wait for each other and take the cores.
    """
    words = list(map(str, command))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, env=env, cwd=cwd, start_new_session=True
    ) as started:
        try:
            out, err = started.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, started.returncode, out, err)
