"""``vega3d export host``: a trained host without its branch, as plain weights of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..output import out, print_json, print_pairs, yellow_warnings


def host(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or hub id of what was trained.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, not there yet or empty.")],
    model: Annotated[
        str | None,
        typer.Option("--host", metavar="MODEL", help="What it was trained on; default: as CHECKPOINT says."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="DIR", help="A PEFT adapter; default: CHECKPOINT, if it is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Write the host of a checkpoint by itself, for servers.

    A checkpoint of a whole patched host has weights that a server does not
    know, and a LoRA adapter is not a host. OUT loads in plain transformers and
    in vLLM: no branch, the adapter merged, the processor beside it.

    \b
      vega3d export host out/checkpoint-500 served
      vllm serve served --enable-mm-embeds

    The branch stays in CHECKPOINT, and goes back onto OUT:

    \b
      model = AutoModelForImageTextToText.from_pretrained("served")
      vega3d.load_pretrained(model, "out/checkpoint-500")

    Load no adapter onto OUT: it is in its weights. `vega3d answer served
    --branch out/checkpoint-500` leaves it out by itself.
    """
    from ...checkpoints.host_export import export_host, find_host_of
    from ...hosts.loading import quiet_transformers

    with yellow_warnings(), quiet_transformers():
        found = export_host(find_host_of(checkpoint, model, adapter=adapter), target)
    if as_json:
        print_json({**{name: value and str(value) for name, value in vars(found).items()}, "tensors": found.tensors,
                    "left_out": found.left_out})  # fmt: skip
        return
    out.print(Text(f"{found.folder}", style="bold"), soft_wrap=True)
    branch = f"left in {found.branch}" if found.branch else "none"
    print_pairs(
        {
            "host": found.host,
            "adapter": f"{found.adapter}, merged" if found.adapter else "none",
            "branch": f"{branch}, {found.left_out} tensors left out" if found.left_out else branch,
            "written": f"{found.tensors:,} tensors",
        }
    )
