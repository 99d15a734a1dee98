"""``vega3d analyse triview``: two or three clips side by side, as a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..output import yellow_warnings
from ..targets import check_target, write
from .asked import Change, asked_priors, print_result


def triview(
    clips: Annotated[
        list[str], typer.Argument(metavar="CLIP...", help="Two or three videos, folders of pictures or scenes.")
    ],
    prior: Annotated[str, typer.Option(help="A prior, see `vega3d ls priors`; NAME?key=value sets one.")],
    frames: Annotated[int, typer.Option(min=2, help="Of each clip, spread evenly.")] = 32,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the video.")] = 8,
    change: Change = None,
    device: Annotated[str | None, typer.Option(help="Device; default: CUDA if there is any.")] = None,
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="The video to write.")] = Path("triview.mp4"),
) -> None:
    """Compare clips of one place or one robot as a video, without geometry.

    For each moment: the frames, the features as colours (the same in all
    clips), how strongly each token matches one in another clip, and the
    consistency over time beside that of different moments. Agent and wrist
    cameras of a policy are such clips.

    \b
      vega3d analyse triview left.mp4 right.mp4 --prior wan2.1-t2v-1.3b
      vega3d analyse triview 'room:0?views=24' 'room:1?views=24' --prior tiny-wan
    """
    from ...analysis.scoring import checked_device
    from ...analysis.side_by_side import side_by_side
    from ...priors.load import load_prior
    from ...scenes.opening import open_scene
    from ...scenes.video import write_video

    check_target(to, ".mp4")
    ((_, settings),) = asked_priors([prior], change)
    with yellow_warnings():
        scenes = [open_scene(clip, check=False) for clip in clips]
        compared = side_by_side(load_prior(settings), scenes, frames, str(checked_device(device)))
    pictures = compared.pictures()

    def written(path: Path) -> None:
        # The writer wants the name of a video; the temporary file has none.
        video = path.with_name(f"{path.name}.mp4")
        write_video(video, pictures, fps)
        video.replace(path)

    write(to, written)
    print_result(compared.table(), [to])
