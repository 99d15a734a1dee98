"""Does a prior help a language model answer where things are? One base host a seed, then the same training for each arm.

python benchmarks/evidence/language_experiment.py run FOLDER      an hour of CPU for three seeds; resumes
python benchmarks/evidence/language_experiment.py judge FOLDER    tables with intervals, and the learning curves
python benchmarks/evidence/language_experiment.py motion          a linear read-out of the camera's motion; minutes
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from language.arms import ARMS, Experiment, Plan
from language.judging import Answers, tables
from language.motion import read_out

Folder = Annotated[Path, typer.Argument(help="Of the experiment: features, states, results.")]
app = typer.Typer(help="Language models with and without the branch, on exact questions.", add_completion=False)


@app.command()
def run(folder: Folder, seeds: int = 3) -> None:
    """Train every arm for every seed, or go on with what is in the folder."""
    torch.set_num_threads(1)
    experiment = Experiment(folder, Plan())
    for seed in range(seeds):
        for arm in ARMS:
            found = experiment.run(arm, seed)
            share = found["right"].count("1") / len(found["right"])
            print(f"seed {seed}, {ARMS[arm]}: {share:.3f} of {len(found['right'])} questions", flush=True)


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
