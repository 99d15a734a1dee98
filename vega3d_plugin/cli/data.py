"""``vega3d data``: a benchmark's public annotation files, or a data set of episodes, to rows of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .output import err, out, print_json
from .targets import check_target, write

if TYPE_CHECKING:
    from ..evaluation.annotations import AnnotationRows

#: What is no benchmark but a layout of episodes.
LEROBOT = "lerobot"
#: Messages that are printed; all of them are in the file of ``--left-out``.
SHOWN = 10


def data(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="scanqa, sqa3d, scanrefer, multi3drefer, scan2cap; or lerobot.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Its annotation files, of one split; lerobot: the folder.")
    ],
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="The rows: .jsonl, or .json for a list.")],
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="train, val or test; default: as the files' names say.")
    ] = None,
    scenes: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Folder of scenes, or an address with {scene}, such as infos.pkl#scannet/{scene}: rows to train on.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The objects' boxes, such as scannet_train_gt_box.json.")
    ] = None,
    proposals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Detected boxes in the same form; for scan2cap's val.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="scannetv2-labels.combined.tsv, for unique and multiple.")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option("--camera", metavar="NAME", help="lerobot: one of its cameras; may be repeated; default: all."),
    ] = None,
    left_out: Annotated[
        Path | None, typer.Option("--left-out", metavar="FILE", help="Write every annotation left out, .txt.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Counts, machine-readable.")] = False,
) -> None:
    """Make rows of data from a benchmark's own annotation files.

    Keys and prompts are those of VEGA-3D's and Video-3D LLM's files. With
    --scenes each row names its scene, and `vega3d train` shows its views;
    without, `video: scannet/SCENE`, as their scripts read it; those that
    evaluate take a list, so end the name in .json for them.

    \b
      vega3d data scanqa ScanQA_v1.0_train.json --scenes posed_images \\
          --out scanqa_train.jsonl
      vega3d data sqa3d v1_balanced_questions_test_scannetv2.json \\
          v1_balanced_sqa_annotations_test_scannetv2.json --out sqa3d.jsonl
      vega3d data scanrefer ScanRefer_filtered_val.json --boxes gt.json \\
          --labels scannetv2-labels.combined.tsv --out scanrefer_val.jsonl

    A data set in lerobot's layout (2.x, 3.0) becomes a row for each episode:
    its cameras' videos, or the parts of them that are the episode, and the
    task as the answer.

    \b
      vega3d data lerobot libero_spatial --camera image --out episodes.jsonl
    """
    check_target(to, ".jsonl", ".json", force=force)
    if left_out is not None:
        check_target(left_out, ".txt")
    read, about = ("episode", "video") if benchmark == LEROBOT else ("annotation", "scene")
    if benchmark == LEROBOT:
        found = _episodes(files, camera or [], split, (scenes, boxes, proposals, labels))
    else:
        found = _annotations(benchmark, files, split, (scenes, boxes, proposals, labels), camera)
    if found.rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in found.rows]
        text = "[" + ",\n".join(lines) + "]\n" if to.suffix == ".json" else "".join(f"{line}\n" for line in lines)
        write(to, lambda path: path.write_text(text, encoding="utf-8"))
    if left_out is not None:
        told = "".join(f"{line}\n" for line in found.left_out)
        write(left_out, lambda path: path.write_text(told, encoding="utf-8"))
    if as_json:
        counts = {"rows": len(found.rows), "read": found.read, f"{about}s": found.scenes}
        print_json({**counts, "left_out": found.left_out, "out": str(to) if found.rows else None})
    else:
        _tell(found.left_out, left_out)
        if found.rows:
            made, places = _some(len(found.rows), "row"), _some(found.scenes, about)
            out.print(Text(f"{made} about {places} from {_some(found.read, read)}: {to}"), soft_wrap=True)
    if not found.rows:
        err.print(Text(f"None of {_some(found.read, read)} became a row; nothing was written.", style="red"))
        raise typer.Exit(1)


def _annotations(
    benchmark: str, files: list[Path], split: str | None, others: tuple[Any, ...], camera: list[str] | None
) -> AnnotationRows:
    from ..evaluation.annotations import SPLITS, Sources, annotation_rows

    if camera:
        raise typer.BadParameter(f"--camera is of {LEROBOT} alone")
    named = {name for name in SPLITS for file in files if name in file.stem.lower()}
    if split is None and len(named) != 1:
        raise typer.BadParameter("the files' names do not say which split they are of: pass --split train, val or test")
    return annotation_rows(benchmark, files, Sources(split or named.pop(), *others))


def _episodes(files: list[Path], cameras: list[str], split: str | None, others: tuple[Any, ...]) -> AnnotationRows:
    from tqdm import tqdm

    from ..evaluation.lerobot import lerobot_rows

    if len(files) != 1 or any(other is not None for other in others):
        raise typer.BadParameter(f"{LEROBOT} takes one folder, --camera and --split, and no other sources")
    return lerobot_rows(files[0], cameras, split, lambda episodes: tqdm(episodes, desc="Episodes", disable=None))


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _tell(messages: list[str], file: Path | None) -> None:
    if not messages:
        return
    err.print(Text(f"{len(messages):,} left out:", style="yellow"))
    # With a file for all of them a few are enough; without, each is told.
    shown = messages[:SHOWN] if file is not None else messages
    for message in shown:
        err.print(Text(f"  {message}"), soft_wrap=True)
    if len(shown) < len(messages):
        err.print(Text(f"  ... all are in {file}"), soft_wrap=True)
