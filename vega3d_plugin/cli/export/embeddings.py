"""``vega3d export embeddings``: the fused visual tokens of rows of questions, as servers take them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..answer import own_device, process_of, progress
from ..options import (
    Adapter,
    BatchSize,
    BranchOrNone,
    Device,
    Frames,
    HostDtype,
    Limit,
    MediaRoot,
    Model,
    Pretrained,
    Processor,
    Shard,
    SkipBadRows,
    Store,
    VideoAs,
)
from ..output import err, out, print_json, yellow_warnings
from ..targets import check_target


def embeddings(
    model: Model,
    data: Annotated[list[str], typer.Option(metavar="ROWS", help="Rows, .json or .jsonl; repeatable.")],
    target: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    branch: BranchOrNone = None,
    adapter: Adapter = None,
    pretrained: Pretrained = None,
    processor: Processor = None,
    media_root: MediaRoot = None,
    frames: Frames = None,
    video_as: VideoAs = None,
    verify: Annotated[int, typer.Option(min=0, metavar="N", help="Compare the logits of N questions.")] = 1,
    batch_size: BatchSize = 1,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    shard: Shard = None,
    store: Store = None,
    device: Device = None,
    dtype: HostDtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The result, machine-readable.")] = False,
) -> None:
    """Write the fused visual tokens of every question in rows of data.

    The vision tower and the branch run once for each question, as in `vega3d
    answer`. What they give is what a server needs in place of pictures.

    \b
      vega3d export embeddings Qwen/Qwen2.5-VL-3B-Instruct \\
          --branch out/checkpoint-500 --data rows.jsonl --out fused

    DIR then holds a safetensors file for each question, index.jsonl (the rows,
    with prompts and files) and index.run.json (fingerprints and settings). In
    Python, where the server runs:

    \b
      from vega3d_plugin.evaluation.serving.files import vllm_inputs
      vllm_inputs("fused", line)      for vllm.LLM(..., enable_mm_embeds=True)
      sglang_inputs("fused", line)    for sglang.Engine(...).generate

    The language model is served without the branch: MODEL itself, or, where an
    adapter was trained too, what `vega3d export host` writes.

    Of the first N questions (--verify) the logits are compared, bit for bit:
    with the branch, and without it but given the written tokens; they go
    alone, the others --batch-size at once. The same command resumes a run that
    was stopped or killed.
    """
    from ...evaluation.harness_host import HostArguments
    from ...evaluation.serving.export import export_embeddings
    from ...evaluation.serving.files import INDEX
    from ...hosts.loading import quiet_transformers

    check_target(target / INDEX, ".jsonl")
    arguments = HostArguments.parse(
        {
            "pretrained": model, "branch": branch, "adapter": adapter, "prior_pretrained": pretrained,
            "processor": processor, "store": store, "device": device or own_device(), "dtype": dtype,
        }
    )  # fmt: skip
    given = {"frames": frames, "video_as": video_as, "media_root": media_root, "skip_bad_rows": skip_bad_rows or None}
    with yellow_warnings(), quiet_transformers(), progress() as start:
        # Others' remarks would bury ours.
        warnings.simplefilter("ignore", FutureWarning)
        found = export_embeddings(
            arguments,
            data,
            target,
            data={key: value for key, value in given.items() if value is not None},
            limit=limit,
            batch_size=batch_size,
            shard=process_of(shard),
            verify=verify,
            start=lambda total, done: start(total, done, "Fusing"),
        )
    if as_json:
        names = ("questions", "share", "found", "missing", "left_out")
        print_json({"out": str(target), **{name: getattr(found, name) for name in names}})
        return
    for row in found.left_out:
        err.print(Text(f"Left out: {row}", style="yellow"), soft_wrap=True)
    if found.missing:
        out.print(
            f"This process is done. {found.missing:,} of {found.questions:,} questions wait for the other processes; "
            f"the last one writes {found.out}.",
            soft_wrap=True,
        )
        return
    what = "already there" if not found.share else f"the fused tokens of {found.questions:,} questions"
    out.print(Text(f"{found.out}: {what}", style="bold"), soft_wrap=True)
