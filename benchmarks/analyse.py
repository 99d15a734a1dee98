"""Does a prior know space? Every step of ``vega3d analyse`` once, offline, as a user would type it.

Rendered rooms, the toy prior with random weights in each of its contexts, its untrained twin, its VAE, pixels and
position: so nothing should stand out, and the tables must say so. Read-outs and the report are run where there are such
commands.

    python benchmarks/analyse.py [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from vega3d_plugin.cli.analyse import analyse

ROOMS = ["--scenes", "room:0..7?views=12&size=96x128", "--set", "size=[64,96]"]
AS_RELEASED = ["--protocol", "released", "--contexts", "frame", "--views", "12"]
LIGHT = ["--contexts", "frame", "--steps", "150"]
LIGHT += [part for name in ("untrained twin", "VAE alone", "position only") for part in ("--controls", name)]
PRIOR = "tiny-wan"


def steps(out: str) -> list[list[str]]:
    """The commands, in their order."""
    return [
        ["correspondence", PRIOR, *ROOMS, "--views", "6", "--out", out],
        ["correspondence", PRIOR, *ROOMS, *AS_RELEASED, "--out", out],
        ["sweep", PRIOR, *ROOMS, "--views", "6", "--timesteps", "0,300,600,1000", "--readout", "--out", out],
        ["compare", f"{out}/{PRIOR}_size-64-96_visible.json", "--out", out],
        ["readout", PRIOR, *ROOMS, *LIGHT, "--out", out],
        ["report", out],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="analysis_out")
    out = parser.parse_args().out
    torch.set_num_threads(2)
    known = {command.name for command in analyse.registered_commands}
    began = time.perf_counter()
    times = []
    for step in steps(out):
        if step[0] not in known:
            print(f"\nNo command 'vega3d analyse {step[0]}' here: left out.")
            continue
        print(f"\n$ vega3d analyse {shlex.join(step)}\n", flush=True)
        start = time.perf_counter()
        analyse(step, standalone_mode=False)
        times.append((step[0], time.perf_counter() - start))
    print()
    for name, seconds in [*times, ("all of it", time.perf_counter() - began)]:
        print(f"{seconds:7.1f} s  {name}")
    print(f"\nLook at {Path(out).resolve()}.")


if __name__ == "__main__":
    main()
