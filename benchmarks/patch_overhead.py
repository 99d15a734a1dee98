"""What a patch costs, apart from the prior: the time of `patch`, and of a forward with the features at hand.

Both sides are measured in one run, in turn, on the same random Qwen2.5-VL; the figures to read are the ratios.

    python benchmarks/patch_overhead.py                      # 2 CPU cores, about a minute; OMP_NUM_THREADS=2
    python benchmarks/patch_overhead.py --device cuda --hidden-size 2048 --layers 28
"""

from __future__ import annotations

import copy
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import vega3d
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor


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
    prior = Given(feature_dim)
    machine = platform.processor() or platform.machine()
    table = Table(title=f"{machine}, {device}, torch {torch.__version__}, hidden {hidden_size}, {layers} layers")
    for column in ("what", "frames", "unpatched", "patched", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")

    # A deep copy touches every weight once, as any step of loading a model does: the yardstick for patch().
    copies = [timed(lambda: copy.deepcopy(host), device) for _ in range(repeats)]
    patches = []
    for _ in tqdm(range(repeats), desc="patch()", leave=False):
        patches.append(timed(lambda: vega3d.patch(host, prior, projector={"name": "mlp"}), device))
        vega3d.unpatch(host)
    table.add_row("patch() against a deep copy of the host", "", *row(median(copies), median(patches)))

    patched = vega3d.patch(copy.deepcopy(host), prior, projector={"name": "mlp"}, store=vega3d.FeatureStore())
    for count in frames or [8, 32]:
        batch = {k: v.to(device) for k, v in inputs(count, size).items()}
        sides: dict[str, list[float]] = {"unpatched": [], "patched": []}
        run = {"unpatched": partial(host, **batch), "patched": partial(patched, **batch)}
        with torch.no_grad():
            for forward in run.values():
                # The first forward fills the store, so that the prior is out of the picture.
                forward()
            for _ in tqdm(range(repeats), desc=f"{count} frames", leave=False):
                for name, forward in run.items():
                    sides[name].append(timed(forward, device))
        table.add_row("forward, features given", str(count), *row(*(median(sides[k]) for k in sides)))
    Console(width=110).print(table)


class Given(vega3d.Prior):
    """Features of the right shape that cost nothing."""

    fingerprint = "given"

    def __init__(self, feature_dim: int) -> None:
        self.feature_dim = feature_dim

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(frames.shape[0], self.feature_dim, 30, 52, generator=generator)


def inputs(frames: int, size: int) -> dict[str, torch.Tensor]:
    """One video in one prompt."""
    processor = tiny_processor(max_pixels=size * size)
    video = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8)
    text = "<|vision_start|><|video_pad|><|vision_end|>Left or right?"
    options = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    batch = dict(processor(text=[text], videos=[video], return_tensors="pt", **options))
    return {k: torch.tensor(v) if isinstance(v, list) else v for k, v in batch.items()}


def timed(action: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def row(base: float, ours: float) -> tuple[str, str, str]:
    """Milliseconds of both, and the ratio."""
    return f"{base * 1e3:.1f} ms", f"{ours * 1e3:.1f} ms", f"{ours / base:.2f}"


if __name__ == "__main__":
    typer.run(main)
