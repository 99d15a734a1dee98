"""Does a prior help a language model answer where things are? Equal training for each arm, exact answers.

python benchmarks/evidence/language_experiment.py run FOLDER      a quarter of an hour of CPU for three seeds; resumes
python benchmarks/evidence/language_experiment.py judge FOLDER    tables with intervals
python benchmarks/evidence/language_experiment.py motion          a linear read-out of the camera's motion; minutes
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from language.arms import ARMS, FIRST, REST, Experiment, Plan
from language.judging import Answers, tables
from language.motion import read_out

Folder = Annotated[Path, typer.Argument(help="Of the experiment: features and results.")]
app = typer.Typer(help="Language models with and without the branch, on exact questions.", add_completion=False)


@app.command()
def run(folder: Folder, seeds: int = 3) -> None:
    """Train every arm for every seed, or go on with what is in the folder."""
    torch.set_num_threads(1)
    experiment = Experiment(folder, Plan())
    print(f"{len(experiment.train)} questions to train on, {len(experiment.test)} held out", flush=True)
    for arms in (FIRST, REST):
        for seed in range(seeds):
            for arm in arms:
                found = experiment.run(arm, seed) or {}
                right = np.array([digit == "1" for digit in found["right"]])
                kinds = experiment.test.kinds
                shares = ", ".join(
                    f"{kind} {right[kinds == kind].mean():.3f}" for kind in dict.fromkeys(kinds.tolist())
                )
                print(f"seed {seed}, {ARMS[arm]}: {right.mean():.3f} ({shares})", flush=True)


@app.command()
def judge(folder: Folder, seeds: int = 3) -> None:
    """Print the tables."""
    for line in tables(Answers(Experiment(folder, Plan()), range(seeds))):
        print(line)


@app.command()
def motion() -> None:
    """Print the table of the linear read-out."""
    torch.set_num_threads(1)
    for line in read_out():
        print(line, flush=True)


if __name__ == "__main__":
    app()
