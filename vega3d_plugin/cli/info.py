"""``vega3d info``: what a saved branch holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..contracts.errors import Vega3dError
from .output import GAP, out, print_json, print_pairs, print_table, table

if TYPE_CHECKING:
    from ..branch.learned_scalars import Scalar
    from ..checkpoints.branch_files import SavedBranch
    from ..contracts.settings import FusionSettings


def info(
    source: Annotated[str, typer.Argument(metavar="DIR", help="Folder or hub id: a saved branch or a checkpoint.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show what a saved branch holds: host, prior, settings, tensors.

    DIR is what [bold]vega3d.save_pretrained[/] wrote, or a trainer's checkpoint that
    holds the branch: a PEFT adapter or a full model. Nothing but the branch's
    own tensors is read.
    """
    from ..branch.learned_scalars import learned_scalars, saved_share
    from ..checkpoints.fitting import check_fit
    from ..checkpoints.reading import read_saved

    saved = read_saved(source, revision=revision)
    check_fit(saved.where, saved.record, saved.tensors)
    built = _fusion(saved)
    scalars, share = learned_scalars(saved.tensors, *built), saved_share(saved.tensors, *built)
    if as_json:
        print_json(_as_dict(saved, scalars, share))
        return
    record = saved.record
    host, prior = record["host"], record["prior"]
    count = sum(t.numel() for t in saved.tensors.values())
    out.print(Text(saved.where, style="bold"), soft_wrap=True)
    out.print()
    print_pairs(
        {
            "host": f"{host.get('name')}, hidden size {host.get('hidden_size')}",
            "prior": f"{prior.get('name')}, features of size {prior.get('feature_dim')}",
            "  source": prior.get("source") or "nothing to download",
            "  revision": prior.get("revision") or "not pinned",
            "  fingerprint": prior.get("fingerprint"),
            "written by": f"vega3d-plugin {record.get('library_version')}",
            "parameters": f"{count:,} in {len(saved.tensors)} tensors",
            "generative share": share,
        }
    )
    if scalars:
        out.print("\n[bold]Learned scalars[/]")
        print_pairs({scalar.name: _value(scalar) for scalar in scalars})
    out.print("\n[bold]Settings[/]")
    from rich.syntax import Syntax

    from ..contracts.yaml_text import dump_yaml

    text = dump_yaml(record["settings"])
    out.print(Padding(Syntax(text.rstrip(), "yaml", theme="ansi_dark", background_color="default"), (0, 0, 0, GAP)))
    out.print()
    print_table(_tensors(saved))


def _fusion(saved: SavedBranch) -> tuple[FusionSettings | None, int]:
    """How the branch fuses, and the host's hidden size."""
    from ..contracts.settings import FusionSettings

    try:
        return FusionSettings.parse(saved.record["settings"]["fusion"]), saved.record["host"]["hidden_size"]
    except Vega3dError:
        # Made with a plugin that is not installed here; the values can be shown all the same.
        return None, 0


def _value(scalar: Scalar) -> str:
    if scalar.start is None:
        return f"{scalar.value:.6g}"
    if scalar.value == scalar.start:
        return f"{scalar.value:.6g}, as at the start: not trained"
    return f"{scalar.value:.6g}, started at {scalar.start:g}"


def _tensors(saved: SavedBranch) -> Table:
    made = table("tensor", "shape", "dtype", "parameters")
    made.columns[-1].justify = "right"
    for name, tensor in saved.tensors.items():
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        made.add_row(Text(name), shape, str(tensor.dtype).removeprefix("torch."), f"{tensor.numel():,}")
    return made


def _as_dict(saved: SavedBranch, scalars: list[Scalar], share: str) -> dict[str, Any]:
    return {
        "where": saved.where,
        **saved.record,
        "parameters": sum(t.numel() for t in saved.tensors.values()),
        "generative_share": share,
        "scalars": {s.name: {"value": s.value, "start": s.start} for s in scalars},
        "tensors": {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in saved.tensors.items()
        },
    }
