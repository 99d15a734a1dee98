"""Exact questions about LIBERO's tables: left or right, nearer, how far, order, size, between, the camera's way.

    MUJOCO_GL=egl python benchmarks/evidence/libero_questions.py render FOLDER   in the simulator's environment
    python benchmarks/evidence/libero_questions.py write FOLDER                  rows for train, validation and test
    python benchmarks/evidence/language_experiment.py run OUT --host libero --scenes FOLDER

Every answer follows from the simulator's poses. Splits share no task. Of each text every answer is equally frequent
within a split, so a model that does not see the pictures is right in half of the questions.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Annotated, get_args

import typer
from language.tables import Split, rows

from vega3d_plugin.scenes.export import export_folder
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.storage.writing import write_json

SUITES = ("libero_object", "libero_spatial", "libero_goal")
Folder = Annotated[Path, typer.Argument(help="Of the scenes, one folder each.")]
app = typer.Typer(help="Questions with exact answers from a simulator.", add_completion=False)


@app.command()
def render(
    folder: Folder, tasks: int = 10, states: int = 2, views: int = 8, height: int = 96, width: int = 128
) -> None:
    """Render initial states of every task, or go on with what is not there yet; seconds a scene."""
    for state, number, suite in product(range(states), range(tasks), SUITES):
        place = folder / f"{suite}_{number}_{state}"
        if not place.exists():
            # Another arc for each scene, or where the camera stands would tell the table.
            way = f"views={views}&size={height}x{width}&state={state}&seed={100 * number + state}"
            export_folder(open_scene(f"libero:{suite}/{number}?{way}"), place)
            print(place.name, flush=True)


@app.command()
def write(folder: Folder, seed: int = 0) -> None:
    """Write ``train.json``, ``validation.json`` and ``test.json`` beside the scenes."""
    for split in get_args(Split):
        found = rows(folder, split, seed)
        write_json(folder / f"{split}.json", found)
        kinds = Counter(row["question_type"] for row in found)
        scenes = len({row["scene"] for row in found})
        print(f"{split}: {len(found)} questions about {scenes} tables; {dict(kinds)}")


if __name__ == "__main__":
    app()
