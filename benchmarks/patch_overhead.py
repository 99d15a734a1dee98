"""What a patch costs, apart from the prior: the time of `patch`, and of a forward with the features at hand.

Both sides are measured in one run, in turn, on the same random Qwen2.5-VL; the figures to read are the ratios.

    python benchmarks/patch_overhead.py                      # 2 CPU cores, about a minute; OMP_NUM_THREADS=2
    python benchmarks/patch_overhead.py --device cuda --hidden-size 2048 --layers 28
"""

from __future__ import annotations

import copy
import platform
import warnings
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from figures import clock, free_prior, table, video_batch
from rich.console import Console
from tqdm import tqdm

import vega3d
from vega3d_qwen_vl.tiny import tiny_model


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Clip lengths; give it twice.")] = None,
    size: Annotated[int, typer.Option(help="Side of the frames in pixels, a multiple of 28.")] = 224,
    hidden_size: Annotated[int, typer.Option(help="Hidden size of the LLM.")] = 1024,
    layers: Annotated[int, typer.Option(help="Layers of the LLM.")] = 24,
    feature_dim: Annotated[int, typer.Option(help="Channels of the feature map; 1536 is Wan 1.3B.")] = 1536,
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure patch() and the patched forward against the unpatched host."""
    warnings.simplefilter("ignore")
    host = tiny_model(hidden_size=hidden_size, layers=layers).to(device)
    prior = free_prior(feature_dim)
    machine = platform.processor() or platform.machine()
    made = table(
        f"{machine}, {device}, hidden {hidden_size}, {layers} layers", "what", "frames", "unpatched", "patched", "ratio"
    )

    # A deep copy touches every weight once, as any step of loading a model does: the yardstick for patch().
    copies = [clock(lambda: copy.deepcopy(host))[0] for _ in range(repeats)]
    patches = []
    for _ in tqdm(range(repeats), desc="patch()", leave=False):
        patches.append(clock(lambda: vega3d.patch(host, prior, projector={"name": "mlp"}))[0])
        vega3d.unpatch(host)
    made.add_row("patch() against a deep copy of the host", "", *row(median(copies), median(patches)))

    patched = vega3d.patch(copy.deepcopy(host), prior, projector={"name": "mlp"}, store=vega3d.FeatureStore())
    for count in frames or [8, 32]:
        batch = {k: v.to(device) for k, v in video_batch(count, size).items()}
        sides: dict[str, list[float]] = {"unpatched": [], "patched": []}
        run = {"unpatched": partial(host, **batch), "patched": partial(patched, **batch)}
        with torch.no_grad():
            for forward in run.values():
                # The first forward fills the store, so that the prior is out of the picture.
                forward()
            for _ in tqdm(range(repeats), desc=f"{count} frames", leave=False):
                for name, forward in run.items():
                    sides[name].append(clock(forward)[0])
        made.add_row("forward, features given", str(count), *row(*(median(sides[k]) for k in sides)))
    Console(width=110).print(made)


def row(base: float, ours: float) -> tuple[str, str, str]:
    """Milliseconds of both, and the ratio."""
    return f"{base * 1e3:.1f} ms", f"{ours * 1e3:.1f} ms", f"{ours / base:.2f}"


if __name__ == "__main__":
    typer.run(main)
