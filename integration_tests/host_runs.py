"""Run scripts of a checkout, through ``vega3d run`` or without it, in a process of their own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from host_sources import host_source
from processes import run_whole
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
STAND_INS = HERE / "host_scripts" / "stand_ins.py"


def write_recipe(path: Path, adapter: str, **others: object) -> Path:
    blocks = {
        "host": {"adapter": adapter, "model": "tiny", "dtype": "bfloat16"},
        "prior": {"name": "tiny-wan", "context": "views", "tap": 2, "size": [96, 160]},
        "projector": {"name": "mlp2x_gelu", "hidden_dim": 64},
        "space": "adaptive_avg",
        **others,
    }
    path.write_text("# A recipe for tests\n" + yaml.safe_dump(blocks))
    return path


def run(
    host: str,
    checkout: str,
    recipe: Path | None,
    *words: object,
    processes: int = 0,
    beside: Mapping[str, Path] | None = None,
    out: bool = False,
    verb: Sequence[object] = ("run",),
    **variables: str,
) -> str:
    """Run a script of a checkout; what was said.

    Args:
        host: whose stand-ins.
        checkout: its folder's name.
        recipe: None: without ``vega3d run``.
        words: script and arguments.
        processes: of torchrun; 0: without it.
        beside: what lies in the folder of the run beside the checkout's own entries: name to path.
        out: give what it wrote to its standard output.
        verb: of vega3d, with its own options.
        variables: of the environment.
    """
    source = host_source(checkout)
    assert source is not None
    python = [sys.executable]
    if processes:
        python = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", str(processes)]
        python += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    through = [] if recipe is None else [*verb, "--recipe", recipe, "--"]
    command = [*python, STAND_INS, host, *through, *words]
    environment = {
        **os.environ,
        # The doubles are enough here, and the checkout's package must be imported as its script does it.
        "VEGA3D_HOST_SOURCES": "",
        # The checkout is importable, as `pip install -e` would make it.
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, HERE.parent / "tests", source])),
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }
    with tempfile.TemporaryDirectory(prefix="vega3d-run-") as here:
        # Scripts find their files from where they are run, and write there.
        for entry in source.iterdir():
            Path(here, entry.name).symlink_to(entry)
        for name, path in (beside or {}).items():
            Path(here, name).symlink_to(path)
        ended = run_whole(command, 500, {**environment, "HF_MODULES_CACHE": f"{here}/modules"}, here)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return ended.stdout if out else ended.stderr


def branch_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "vega3d.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal, where one of them was read by a host in bfloat16 after rounding to that."""

    def equal(a: Tensor, b: Tensor) -> bool:
        half = next((t.dtype for t in (a, b) if t.dtype == torch.bfloat16), a.dtype)
        return torch.equal(a.to(half), b.to(half))

    return set(one) == set(other) and all(equal(one[name], other[name]) for name in one)


def flags(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
