"""``vega3d store``: look after a feature store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from tqdm import tqdm

from .output import err, out, print_json, print_pairs

HELP = """Inspect, check and clean a feature store: a folder, or a URL such as s3://bucket/x.

[bold]vega3d extract[/] fills one; so does [bold]vega3d.patch(model, store=...)[/].

\b
[bold]Examples[/]
  vega3d store info features
  vega3d store verify s3://bucket/features     read and check every entry
  vega3d store prune features --dry-run        damaged, twice, left over
  vega3d store merge features other            combine; pack into shards
  vega3d store copy features s3://bucket/features
"""
SHOWN = 20

Store = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
ShardSize = Annotated[int, typer.Option("--shard-mb", min=1, help="Size of a shard, in MiB.")]

store = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")


@store.command("info")
def info(source: Store, as_json: Json = False) -> None:
    """What a store holds, from its names and headers; no features are read."""
    from ..features.upkeep import describe, open_store

    found = describe(open_store(source))
    if as_json:
        print_json(asdict(found))
        return
    print_pairs(
        {
            "store": found.where,
            "prior": f"{found.owner.get('prior')}, {found.owner.get('feature_dim')} channels",
            "fingerprint": found.owner.get("fingerprint"),
            "entries": f"{found.entries:,}",
            **{f"  {kind}": f"{count:,}" for kind, count in found.kinds.items()},
            "in shards": f"{found.shards:,} files, {size(found.shard_bytes)}"
            + ("" if found.manifest or not found.shards else ", no manifest"),
            "in files of their own": f"{found.loose:,} files, {size(found.loose_bytes)}",
        }
    )
    told = {
        f"{found.twice:,} entries lie there twice": found.twice,
        f"{found.leftovers:,} leftovers of killed writers": found.leftovers,
        f"{len(found.unreadable):,} shards cannot be read": len(found.unreadable),
    }
    for text in (text for text, count in told.items() if count):
        err.print(Text(f"{text}: vega3d store prune {source}", style="yellow"), soft_wrap=True)


@store.command("verify")
def verify(source: Store, as_json: Json = False) -> None:
    """Read every entry and compare it with its checksum. Exit 1 where one does not hold."""
    from ..features import upkeep

    bad = upkeep.verify(upkeep.open_store(source), bar("Verifying"))
    if as_json:
        print_json({"damaged": bad})
    else:
        _list(bad)
        out.print("Every entry holds." if not bad else f"{len(bad):,} do not hold.")
        if bad:
            err.print(Text(f"They are computed again when they are needed, or: vega3d store prune {source}"))
    raise typer.Exit(1 if bad else 0)


@store.command("prune")
def prune(
    source: Store,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys to keep, one a line (vega3d extract --keys FILE).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
    as_json: Json = False,
) -> None:
    """Remove damaged and duplicate entries, leftovers, and what is not in --keep."""
    from ..contracts.errors import StoreError
    from ..features import upkeep

    wanted = None
    if keep is not None:
        try:
            wanted = set(keep.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{keep} cannot be read: {error}.") from error
        if not wanted:
            raise StoreError(f"{keep} holds no keys: everything would be removed. Delete the folder if that is meant.")
    found = upkeep.prune(upkeep.open_store(source), wanted, dry_run=dry_run, progress=bar("Reading"))
    if as_json:
        print_json(asdict(found))
        return
    _list(found.damaged)
    print_pairs(
        {
            "damaged": f"{len(found.damaged):,}",
            "there twice": f"{found.twice:,}",
            "not to be kept": f"{found.unwanted:,}",
            "leftovers": f"{found.leftovers:,}",
            "would be freed" if dry_run else "freed": size(found.bytes),
        }
    )


@store.command("merge")
def merge(
    source: Store,
    others: Annotated[list[str] | None, typer.Argument(metavar="[OTHER]...", help="Stores to take in.")] = None,
    shard_mb: ShardSize = 512,
) -> None:
    """Take in other stores of the same prior, then pack small files into shards."""
    from ..features import upkeep
    from ..features.store import FeatureStore

    target = FeatureStore(source, memory_bytes=0, cache_bytes=0) if others else upkeep.open_store(source)
    for other in others or []:
        count = upkeep.copy(upkeep.open_store(other), target, bar(f"From {other}"), shard_mb << 20)
        out.print(Text(f"{count:,} entries from {other}"), soft_wrap=True)
    written = upkeep.merge(target, shard_mb << 20, bar("Packing"))
    out.print(f"{written:,} shards written.")


@store.command("copy")
def copy(
    source: Store,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or URL; what it has is left out.")],
    shard_mb: ShardSize = 512,
) -> None:
    """Copy what another place lacks, checked on the way; again after a break, it goes on."""
    from ..features import upkeep
    from ..features.store import FeatureStore

    held = FeatureStore(target, memory_bytes=0, cache_bytes=0)
    count = upkeep.copy(upkeep.open_store(source), held, bar("Copying"), shard_mb << 20)
    out.print(Text(f"{count:,} entries copied to {target}"), soft_wrap=True)


def bar(what: str) -> Callable[[Collection[str]], Iterable[str]]:
    """Shows a bar, on a terminal, while names are worked through."""
    return partial(tqdm, desc=what, unit="entry", disable=None)


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _list(bad: dict[str, str]) -> None:
    for where, problem in list(bad.items())[:SHOWN]:
        err.print(Text(f"{where}: {problem}", style="red"), soft_wrap=True)
    if len(bad) > SHOWN:
        err.print(f"... and {len(bad) - SHOWN:,} more")
