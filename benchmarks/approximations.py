"""What the approximations of a prior change, and what they save: on features, correspondence, a host's logits, time.

    python benchmarks/approximations.py                 # 2 CPU cores, some minutes; OMP_NUM_THREADS=1
    python benchmarks/approximations.py errors          # of `small-world`, on rendered rooms
    python benchmarks/approximations.py times           # of random weights in the geometry of Wan 2.1 1.3B

Reference is the exact fast path in float32, context `frame`. Errors of features are relative to the largest value, on
the reference's grid; those of logits to the largest change that the branch makes. The sides of `times` are run in turn
in one process, processor seconds, and the best of each counts.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from figures import clock, table
from prior_throughput import TAPPED, _models, _prior
from rich.console import Console
from torch import Tensor

import vega3d
from vega3d_plugin.analysis import correspondence
from vega3d_plugin.analysis.records import ITSELF
from vega3d_plugin.scenes.opening import open_scenes
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

app = typer.Typer(add_completion=False)
out = Console(width=130)
#: Of Wan's geometry and of small-world: what is set beside the defaults.
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "half resolution": {"size": "half"},
    "int8": {"int8": True},
    "every 2nd frame": {"every": 2},
    "every 4th frame": {"every": 4},
    "bfloat16": {"dtype": "bfloat16"},
    "int8, every 2nd frame": {"int8": True, "every": 2},
}


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Both, one after the other."""
    warnings.simplefilter("ignore")
    if context.invoked_subcommand is None:
        errors()
        times()


@app.command("errors")
def errors(
    rooms: Annotated[int, typer.Option(help="Rendered rooms, for correspondence.")] = 4,
    frames: Annotated[int, typer.Option(help="Of the clip: a walk through a room.")] = 9,
) -> None:
    """Of features, logits and correspondence, with the trained small generator."""
    walk = open_scenes([f"room:0?views={frames}&size=96x128"])[0]
    clip = torch.stack([view.frame() for view in walk.views])
    scenes = open_scenes([f"room:0..{rooms - 1}?views=6&size=96x128"])
    batch = _batch(clip)
    with torch.no_grad():
        bare = tiny_model(hidden_size=256).eval()(**batch).logits.float()
    made = table(
        "errors of approximations, small-world, context frame",
        "way", "features, largest", "features, mean", "logits, largest", "largest answer changes", "recall",
    )  # fmt: skip
    known: dict[str, Tensor] = {}
    for way, changes in WAYS.items():
        prior = vega3d.load_prior("small-world", context="frame", **_sized(changes, (24, 24)))
        features = prior(clip).float()
        torch.manual_seed(0)
        model = vega3d.patch(tiny_model(hidden_size=256), prior, init="released").eval()
        with torch.no_grad():
            logits = model(**batch).logits.float()
        known.setdefault("features", features)
        known.setdefault("logits", logits)
        base = known["features"]
        off = F.interpolate(features, base.shape[-2:], mode="bilinear") - base
        result = correspondence(prior, scenes, contexts=["frame"], controls=False, check=False)
        recall = result.priors[0].figure(result.headline, ITSELF).value
        made.add_row(
            way, f"{float(off.abs().max() / base.abs().max()):.1e}", f"{float(off.norm() / base.norm()):.1e}",
            f"{float((logits - known['logits']).abs().max() / (known['logits'] - bare).abs().max()):.1e}",
            f"{float((logits.argmax(-1) != known['logits'].argmax(-1)).float().mean()):.1%}", f"{recall:.3f}",
        )  # fmt: skip
    out.print(made)


@app.command("times")
def times(
    frames: Annotated[int, typer.Option(help="Of the clip.")] = 3,
    blocks: Annotated[int, typer.Option(help="Of the transformer; the tap keeps its place.")] = 10,
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 2,
) -> None:
    """Of random weights in Wan 1.3B's geometry, 240x416."""
    size = (240, 416)
    clip = torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(0))
    # One set of weights for all ways that have them in the same numbers.
    loaded: dict[tuple[Any, ...], Any] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, changes in WAYS.items():
            settings = _sized(changes, size)
            numbers = {key: settings[key] for key in ("int8", "dtype") if key in settings}
            key = tuple(numbers.items())
            if key not in loaded:
                loaded[key] = _prior(_models(blocks, torch.device("cpu")), blocks, **numbers)
            prior = loaded[key]
            prior.size = settings.get("size", size)
            prior.settings = prior.settings.model_copy(update={"every": settings.get("every", 1)})
            with prior.session(clip.device):  # its preparation is not part of a clip
                seconds[way].append(clock(lambda prior=prior: prior(clip))[1])
    made = table(
        f"{frames} frames of 240x416, {blocks} blocks, tap at {TAPPED:.0%}, context frame",
        "way",
        "CPU seconds",
        "ratio",
    )
    exact = min(seconds["exact"])
    for way, found in seconds.items():
        made.add_row(way, f"{min(found):.1f}", f"{exact / min(found):.2f}")
    out.print(made)


def _sized(changes: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    half = {"size": (size[0] // 2, size[1] // 2)} if changes.get("size") == "half" else {}
    return {**changes, **half}


def _batch(clip: Tensor) -> dict[str, Tensor]:
    """The clip as one video in one prompt, as Qwen-VL's processor gives it."""
    processor = tiny_processor(max_pixels=224 * 224)
    options = {"do_sample_frames": False} if hasattr(processor, "video_processor") else {}
    text = "<|vision_start|><|video_pad|><|vision_end|>Left or right?"
    batch = dict(processor(text=[text], videos=[(clip * 255).byte()], return_tensors="pt", **options))
    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in batch.items()}


if __name__ == "__main__":
    app()
