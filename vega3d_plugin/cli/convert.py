"""``vega3d convert``: a checkpoint of the released code as files of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .output import out, print_json, print_pairs, yellow_warnings
from .targets import OutputError

if TYPE_CHECKING:
    from ..checkpoints.released.loading import ReleasedBranch


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, file of weights, or hub id.")],
    target: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    host: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="For LLaVA: llava_video (default) or llava_transformers.")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="A prior, when config.json names none; `vega3d ls priors`.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Folder or hub id of the prior's weights, recorded.")] = None,
    fingerprint: Annotated[
        bool,
        typer.Option(
            "--fingerprint", help="Load the prior, so that its fingerprint is recorded and checked from then on."
        ),
    ] = False,
    published_tower: Annotated[
        bool, typer.Option("--published-tower", help="Use the published tower instead of the one that SRC holds.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a branch that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Convert the branch of a checkpoint of the released VEGA-3D code.

    SRC is such a checkpoint of Qwen2.5-VL or LLaVA-Video: safetensors or
    pytorch_model.bin, whole or in shards, mm_projector.bin, or
    non_lora_trainables.bin. The host is neither built nor written. A tower that
    SRC holds is written too, unless it is the published one; it is compared
    where --pretrained is a folder, or with --fingerprint.

    \b
    Afterwards, in Python:
      vega3d.load_pretrained(model, DIR)
    or, with the language model's weights of SRC too:
      vega3d.load_released(model, SRC)
    """
    from ..checkpoints.released.loading import convert_released
    from ..storage.record import CONFIG_FILE

    if not force and (target / CONFIG_FILE).exists():
        raise OutputError(f"{target} holds a branch already. Pass --force to replace it, or another --out.")
    if target.is_file():
        raise OutputError(f"{target} is a file; the path of a folder is expected.")
    with yellow_warnings():
        released = convert_released(
            source,
            target,
            host=host,
            prior=prior,
            pretrained=pretrained,
            fingerprint=fingerprint,
            own_tower=not published_tower,
            revision=revision,
        )
    (_print_json if as_json else _print)(released, target, host or released.layout.host, prior)


def _print_json(released: ReleasedBranch, target: Path, host: str, prior: str | None) -> None:
    from ..storage.record import TOWER_FILE

    print_json(
        {
            "source": released.where,
            "out": str(target),
            "host": host,
            "hidden_size": released.inferred.hidden_size,
            "settings": released.inferred.settings,
            "tensors": {name: list(tensor.shape) for name, tensor in released.tensors.items()},
            "host_weights": len(released.host_weights),
            "tower_weights": len(released.skipped),
            "tower": released.tower_line,
            "tower_file": TOWER_FILE if (target / TOWER_FILE).is_file() else None,
            "assumed": released.inferred.notes,
        }
    )


def _print(released: ReleasedBranch, target: Path, host: str, prior: str | None) -> None:
    from ..storage.record import TOWER_FILE

    out.print(Text(f"{target}", style="bold"), soft_wrap=True)
    settings = released.inferred.settings
    chosen, own = settings.get("prior", {}), (target / TOWER_FILE).is_file()
    print_pairs(
        {
            "host": f"{host}, hidden size {released.inferred.hidden_size}",
            "prior": prior or chosen.get("name"),
            "fusion": settings["fusion"]["name"],
            "projector": f"{settings['projector']['name']}, width {settings['projector']['hidden_dim']}",
            "written": f"{len(released.tensors)} tensors" + (f", and {TOWER_FILE}" if own else ""),
            "left": f"{len(released.host_weights)} weights of the host"
            + ("" if own else f", {len(released.skipped)} of the frozen tower"),
            **({"tower": released.tower_line} if released.tower_line else {}),
            **({"assumed": "; ".join(released.inferred.notes)} if released.inferred.notes else {}),
        }
    )
    out.print("[dim]`vega3d info` shows all settings.[/]")
