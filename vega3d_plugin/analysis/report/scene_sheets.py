"""Contact sheets of scenes beside the results, for the report: it reads results, and no longer knows the scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from ...scenes.contact_sheet import draw_contact_sheet
from ...scenes.scene import Scene
from ...scenes.views import choose_views
from ...storage.writing import write_atomically

#: Folder of the sheets, below that of the results.
FOLDER = "scenes"
#: Scenes of which a sheet is made.
MOST = 4
_WIDEST = 1200
_QUALITY = 82


def write_scene_sheets(folder: str | Path, scenes: Sequence[Scene], views: int = 8, most: int = MOST) -> list[Path]:
    """Write a contact sheet of each of the first scenes; one that is there already stays.

    Args:
        folder: of the results; sheets go to ``scenes/`` in it.
        scenes: any.
        views: of each, spread evenly.
        most: scenes.

    Raises:
        SceneError: a picture or depth map cannot be read.
    """
    written = []
    for scene in scenes[:most]:
        name = re.sub(r"[^\w.-]+", "-", scene.name).strip("-.")[:80] or "scene"
        path = Path(folder) / FOLDER / f"{name}_{scene.fingerprint[:8]}.jpg"
        if not path.is_file():
            sheet = draw_contact_sheet(scene, choose_views(scene, "uniform", min(views, len(scene)), gains=False))
            sheet.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
            write_atomically(path, partial(_save, sheet))
        written.append(path)
    return written


def _save(sheet: Image.Image, path: Path) -> None:
    sheet.save(path, format="JPEG", quality=_QUALITY)
