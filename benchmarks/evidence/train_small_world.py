"""``small-world``: a video generator of Wan's classes, trained on rendered worlds on one core of a CPU.

python benchmarks/evidence/train_small_world.py train FOLDER      hours; interrupted, the same command goes on
python benchmarks/evidence/train_small_world.py measure FOLDER    what it knows, against its controls; a minute
python benchmarks/evidence/train_small_world.py contrast         worlds beside photographs; needs scikit-image
python benchmarks/evidence/train_small_world.py draw FOLDER       curves.png, and videos.png of generated frames
python benchmarks/evidence/train_small_world.py export FOLDER PRIOR
                                                                  for load_prior("small-world", pretrained=PRIOR)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from small_world.measure import LEVELS, MovedPoints, controls, recall_by_block
from small_world.training import CURVES, Run, TrainingSettings, read_run

DEFAULTS = TrainingSettings()
Folder = Annotated[Path, typer.Argument(help="Of the run: its state, curves and pictures.")]
app = typer.Typer(help="Train and judge a small video generator.", add_completion=False)


@app.command()
def train(
    folder: Folder,
    steps: int = DEFAULTS.steps,
    clips: int = DEFAULTS.clips,
    width: int = DEFAULTS.width,
    blocks: int = DEFAULTS.blocks,
    patch: int = DEFAULTS.patch,
    rate: float = DEFAULTS.rate,
    seed: int = DEFAULTS.seed,
    every: Annotated[int, typer.Option(help="Steps between two states and measurements.")] = 100,
) -> None:
    """Train, or go on with what is in the folder."""
    torch.set_num_threads(1)
    run = Run(folder, TrainingSettings(steps, clips, width, blocks, patch, rate, seed))
    points = MovedPoints(patch=patch)
    if run.step == 0:
        run.note({"controls": {name: controls(points, levels, **run.size) for name, levels in LEVELS.items()}})

    def report(run: Run, figures: dict[str, float]) -> None:
        recall = {
            name: [round(r, 3) for r in recall_by_block(run.transformer, points, levels)]
            for name, levels in LEVELS.items()
        }
        run.note({**figures, "recall": recall})
        print(figures, recall, flush=True)

    run.train(every=every, report=report)


@app.command()
def measure(
    folder: Folder,
    worlds: int = 120,
    block: Annotated[int, typer.Option(help="The middle block that is compared with its controls.")] = 4,
) -> None:
    """Recall of moved points, depth read-out and continuations, on worlds that no curve was measured on."""
    from small_world.report import judge

    torch.set_num_threads(1)
    for line in judge(read_run(folder), worlds, block):
        print(line, flush=True)


@app.command()
def contrast() -> None:
    """How far apart the tokens of worlds are, and those of scikit-image's photographs."""
    from small_world.contrast import table

    for row in table():
        print(row)


@app.command()
def draw(folder: Folder) -> None:
    """Curves of the training, and clips: the truth, two frames gone on with, and clips from noise alone."""
    from small_world.model import to_frames
    from small_world.pictures import draw_clips
    from small_world.report import curves
    from small_world.sampling import continuation, sample

    torch.set_num_threads(1)
    curves([json.loads(line) for line in (folder / CURVES).read_text().splitlines()], folder / "curves.png")
    transformer: Any = read_run(folder).transformer
    _, truth, continued = continuation(transformer, clips=8)
    noise = torch.randn(8, 3, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    draw_clips([truth, continued, to_frames(sample(transformer, noise))], folder / "videos.png")


@app.command()
def export(folder: Folder, prior: Annotated[Path, typer.Argument(help="The folder to write.")]) -> None:
    """Write the transformer in bfloat16, as the prior ``small-world`` reads it."""
    transformer: Any = read_run(folder).transformer
    for parameter in transformer.parameters():
        parameter.data = parameter.data.bfloat16()
    transformer.save_pretrained(prior / "transformer")
    for file in (prior / "transformer").iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    app()
