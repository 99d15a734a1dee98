"""Options that several commands have, each with one name, one help text and one meaning."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of the host.")]
Data = Annotated[list[str], typer.Option(metavar="FILE", help="Rows, .json or .jsonl; repeatable.")]
Adapter = Annotated[str | None, typer.Option(metavar="DIR", help="A PEFT adapter; default: --branch, if it is one.")]
Pretrained = Annotated[str | None, typer.Option(help="Folder or hub id of the prior's weights.")]
Processor = Annotated[
    str | None, typer.Option(help="Folder or hub id of a processor; default: the checkpoint's or MODEL's.")
]
MediaRoot = Annotated[str | None, typer.Option(help="Folder that relative paths in the rows start from.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a video; default: as in training, else 8.")]
VideoAs = Annotated[
    str | None, typer.Option(help="video, or images (each frame one); default: as in training, else video.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows at most, from the first.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions at once.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and list them.")
]
Store = Annotated[str | None, typer.Option(metavar="DIR", help="A feature store.")]
Device = Annotated[str | None, typer.Option(help="Device; default: CUDA if there is any.")]
HostDtype = Annotated[str, typer.Option(help="Dtype of the host: auto (as saved), bfloat16, ...")]
BranchOrNone = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A saved branch or a checkpoint; default: MODEL. none: the host alone."),
]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="This process of N, from 1; default: as torchrun says.")]
