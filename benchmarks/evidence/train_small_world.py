"""Train ``small-world``, a video generator of Wan's classes with 2 million parameters, on rendered worlds.

    python benchmarks/evidence/train_small_world.py FOLDER
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from small_world.measure import LEVELS, MovedPoints, controls, recall_by_block
from small_world.training import Run, TrainingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=250)
    for field in fields(TrainingSettings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    folder, every = given.pop("folder"), given.pop("every")
    run = Run(folder, TrainingSettings(**given))
    points = MovedPoints(patch=run.settings.patch)
    if run.step == 0:
        run.note({"controls": {name: controls(points, levels, **run.size) for name, levels in LEVELS.items()}})

    def report(run: Run, figures: dict[str, Any]) -> None:
        recall = {
            name: [round(r, 3) for r in recall_by_block(run.transformer, points, levels)] for name, levels in LEVELS.items()
        }
        run.note({**figures, "recall": recall})
        print(figures, recall, flush=True)

    run.train(every=every, report=report)


if __name__ == "__main__":
    main()
