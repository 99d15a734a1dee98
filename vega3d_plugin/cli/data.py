"""``vega3d data``: a benchmark's public annotation files to rows of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .output import err, out, print_json
from .targets import check_target, write

#: Messages that are printed; all of them are in the file of ``--left-out``.
SHOWN = 10


def data(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="scanqa, sqa3d, scanrefer, multi3drefer or scan2cap.")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Its annotation files, of one split.")],
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
    """
    from ..evaluation.annotations import SPLITS, Sources, annotation_rows

    check_target(to, ".jsonl", ".json", force=force)
    if left_out is not None:
        check_target(left_out, ".txt")
    named = {name for name in SPLITS for file in files if name in file.stem.lower()}
    if split is None and len(named) != 1:
        raise typer.BadParameter("the files' names do not say which split they are of: pass --split train, val or test")
    found = annotation_rows(benchmark, files, Sources(split or named.pop(), scenes, boxes, proposals, labels))
    if found.rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in found.rows]
        text = "[" + ",\n".join(lines) + "]\n" if to.suffix == ".json" else "".join(f"{line}\n" for line in lines)
        write(to, lambda path: path.write_text(text, encoding="utf-8"))
    if left_out is not None:
        told = "".join(f"{line}\n" for line in found.left_out)
        write(left_out, lambda path: path.write_text(told, encoding="utf-8"))
    if as_json:
        counts = {"rows": len(found.rows), "read": found.read, "scenes": found.scenes}
        print_json({**counts, "left_out": found.left_out, "out": str(to) if found.rows else None})
    else:
        _tell(found.left_out, left_out)
        if found.rows:
            made, places = _some(len(found.rows), "row"), _some(found.scenes, "scene")
            out.print(Text(f"{made} about {places} from {_some(found.read, 'annotation')}: {to}"), soft_wrap=True)
    if not found.rows:
        err.print(Text(f"None of {_some(found.read, 'annotation')} became a row; nothing was written.", style="red"))
        raise typer.Exit(1)


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
