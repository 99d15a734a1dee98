"""``vega3d prior export-prompt``: the empty prompt's embedding as a file, so that no text encoder is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ...contracts.errors import PriorError
from ...contracts.tables import PRIORS
from ...priors.prompts import SAVED_NAME
from ..output import out, print_pairs, yellow_warnings
from ..targets import check_target, write_tensors


def export_prompt(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A prior, see `vega3d ls priors`.")],
    pretrained: Annotated[
        str | None, typer.Option(help="Folder or hub id of its weights. Default: the prior's own source.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path(SAVED_NAME),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write the embedding of a prior's empty prompt to a file.

    It is computed with the checkpoint's own text encoder, which may be many
    times the size of the rest. Beside the weights, the file replaces it.

    \b
      vega3d prior export-prompt wan2.1-t2v-1.3b
      vega3d prior export-prompt wan2.1-t2v-1.3b --pretrained weights/wan
                                   --out weights/wan/empty_prompt.safetensors
    """
    from ...contracts.settings import PriorSettings
    from ...priors.resolving import resolve

    priors = PRIORS
    spec = priors.get(name)
    if spec.prompt is None:
        those = ", ".join(other.name for other in priors if other.prompt is not None)
        raise PriorError(f"Prior {name!r} has no prompt to export. Those that have one: {those or 'none'}.")
    check_target(to, ".safetensors", force=force)
    given = {"name": name, "pretrained": pretrained, "revision": revision}
    settings = resolve(PriorSettings.parse({key: value for key, value in given.items() if value is not None}))
    with yellow_warnings():
        tensors = spec.prompt(settings)
    write_tensors(to, tensors)

    out.print(Text(str(to), style="bold"), soft_wrap=True)
    print_pairs({key: f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for key, t in tensors.items()})
    folder = Path(pretrained).expanduser() if pretrained else None
    if folder is not None and to.name == SAVED_NAME and to.resolve().parent == folder.resolve():
        out.print("It lies beside the weights, so their text encoder is no longer needed.")
        return
    where = str(folder) if folder is not None and folder.is_dir() else "the folder that you pass as --pretrained"
    text = f"Put it beside the weights, into {where}, as {SAVED_NAME}: then no text encoder is needed."
    out.print(Text(text), soft_wrap=True)
