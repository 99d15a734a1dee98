"""How soon the command answers: the figure to read is the ratio to importing what any such command imports.

    python benchmarks/cli_start.py        # some seconds; nothing else should run

Both sides are measured in turn, so that a busy machine disturbs both; processor time is that of the process alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from figures import clock, table
from rich.console import Console
from tqdm import tqdm

BASE = [sys.executable, "-c", "import typer, pydantic"]
COMMANDS = (
    "--help",
    "ls",
    "recipes ls",
    "recipes show qwen_vl/smoke",
    "recipes validate qwen_vl/smoke",
    "recipes validate",
    "store info STORE",
    "info --help",
    "prior info wan2.1-t2v-1.3b",
    "info BRANCH",
)


def main(repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 9) -> None:
    """Measure the start of commands that touch no model."""
    folder = Path(tempfile.mkdtemp())
    branch, store = _made(folder)
    os.environ["VEGA3D_CACHE"] = str(folder / "cache")
    made = table(
        "the command's start against `python -c 'import typer, pydantic'`",
        "vega3d", "seconds", "CPU seconds", "ratio", "ratio of CPU seconds", "first time",
    )  # fmt: skip
    for line in tqdm(COMMANDS, leave=False):
        words = [{"STORE": str(store), "BRANCH": str(branch)}.get(word, word) for word in line.split()]
        command = [sys.executable, "-c", "from vega3d_plugin.cli import main; main()", *words]
        first, _ = _run(command)
        pairs = [(_run(BASE), _run(command)) for _ in range(repeats)]
        ratio, of_cpu = (median(own[i] / base[i] for base, own in pairs) for i in (0, 1))
        seconds, cpu = (median(own[i] for _, own in pairs) for i in (0, 1))
        made.add_row(line, f"{seconds:.2f}", f"{cpu:.2f}", f"{ratio:.1f}", f"{of_cpu:.1f}", f"{first:.2f} s")
    Console(width=116).print(made)


def _run(command: list[str]) -> tuple[float, float]:
    return clock(lambda: subprocess.run(command, check=True, capture_output=True), children=True)


def _made(folder: Path) -> tuple[Path, Path]:
    """A saved branch and a store, made in a process of its own."""
    script = (
        "import sys, torch, vega3d\n"
        "from vega3d_qwen_vl.tiny import tiny_model\n"
        "model = vega3d.patch(tiny_model(), 'tiny-wan', store=sys.argv[2])\n"
        "vega3d.get_handle(model).branch.store.put('0' * 32, torch.zeros(1, 96, 2, 2))\n"
        "vega3d.save_pretrained(model, sys.argv[1])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder / "branch"), str(folder / "store")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "branch", folder / "store"


if __name__ == "__main__":
    typer.run(main)
