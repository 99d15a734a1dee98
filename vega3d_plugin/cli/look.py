"""``vega3d look``: one question about one's own video or pictures, with what the branch does drawn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .options import Device, Pretrained
from .output import err, out, print_json, print_table, table, yellow_warnings

if TYPE_CHECKING:
    from ..evaluation.looking import Looked

#: Frames that are drawn in the terminal, and tokens across one.
FRAMES, WIDEST = 4, 24


def look(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A saved branch, or a trainer's checkpoint.")],
    question: Annotated[str, typer.Option(help="About the video or the images.")],
    video: Annotated[Path | None, typer.Option(metavar="FILE", help="A video, or a folder of frames.")] = None,
    images: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeatable.")] = None,
    host: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or hub id; default: the one it was trained on.")
    ] = None,
    pretrained: Pretrained = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the video; default: as in training, else 8.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    to: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for what is drawn.")] = Path("look_out"),
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Ask a trained branch one question, with and without the branch, and see what the branch does.

    Writes a page, pictures and a video: the effective share of the prior over
    the frames, and the prior's features as colours. One answer shows no effect;
    `vega3d ablate` measures it over many.

    \b
      vega3d look outputs/mine/checkpoint-500 --video kitchen.mp4
                  --question "Is the kettle left of the sink?"
      vega3d look outputs/mine/checkpoint-500 --images a.jpg --images b.jpg
                  --question "Are these the same room?"
    """
    from ..evaluation.looking import as_values
    from ..evaluation.looking import look as run
    from ..hosts.loading import quiet_transformers

    if (video is None) == (not images):
        raise typer.BadParameter("Give either --video or --images.")
    for path in [video] if video is not None else images or []:
        if not path.exists():
            raise typer.BadParameter(f"{path} does not exist.")
    with yellow_warnings(), quiet_transformers(), err.status("Loading ...") as status:
        warnings.simplefilter("ignore", FutureWarning)
        found = run(
            checkpoint, question, out=to, video=video, images=images or (), host=host, pretrained=pretrained,
            frames=frames, max_new_tokens=max_new_tokens, device=device, say=lambda text: status.update(f"{text} ..."),
        )  # fmt: skip
    if as_json:
        print_json(as_values(found))
        return
    _shown(found)


def _shown(found: Looked) -> None:
    from ..evaluation.looking import NAMES

    made = table("", "answer", title=found.question)
    for name, said in found.answers.items():
        made.add_row(Text(NAMES[name], style="bold" if name == "patched" else ""), Text(said or "(nothing)"))
    print_table(made)
    for clip, shares in found.clips[:1]:
        out.print(Text(f"Effective share: {shares}"), soft_wrap=True)
        if shares.generative is not None:
            out.print(_maps(shares.generative.cpu().numpy()))
            low, high = float(shares.generative.min()), float(shares.generative.max())
            text = f"share of the prior in each token: dark is {low:.4g}, bright is {high:.4g}; {clip.grid.t} frames"
            out.print(Text(text, style="dim"))
    out.print()
    for name, path in found.files.items():
        out.print(Text(f"  {name}: {path}"), soft_wrap=True)


def _maps(shares: Any) -> Table:
    """The share of some frames as blocks of colour, the colours those of the pictures."""
    from ..analysis.pictures import heat_colours
    from ..training.samples import evenly

    low, high = float(shares.min()), float(shares.max())
    grid = Table.grid(padding=(0, 2))
    step = max(1, -(-shares.shape[2] // WIDEST))
    blocks = []
    for plane in evenly(list(shares), FRAMES):
        text = Text()
        for line in heat_colours((plane[::step, ::step] - low) / (high - low) if high > low else plane[::step, ::step]):
            for red, green, blue in line.tolist():
                text.append("  ", style=f"on rgb({red},{green},{blue})")
            text.append("\n")
        blocks.append(text)
    grid.add_row(*blocks)
    return grid
