"""Which file format for many feature maps: write once, read any of them by key. Measured, to choose.

    pip install webdataset pylance           # besides this package
    python benchmarks/store_formats.py       # 2 CPU cores, about a minute

Each format is written once and read in a random order, as training reads it, in turn with the others; every map read is
compared with a checksum. WebDataset's tar files are read in their order, since they have no way to one key.
"""

from __future__ import annotations

import io
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, save

from vega3d_plugin.features.store import FeatureStore
from vega3d_plugin.storage.checksums import checksum


def main(
    entries: Annotated[int, typer.Option(help="Maps in the store.")] = 64,
    shape: Annotated[str, typer.Option(help="T,C,h,w; the default is 8 frames of Wan 1.3B on 14x14 tokens.")] = (
        "8,1536,14,14"
    ),
    repeats: Annotated[int, typer.Option(help="Reads of the whole store.")] = 5,
) -> None:
    """Write and read the same maps in four ways."""
    sizes = [int(part) for part in shape.split(",")]
    maps = {f"{n:032x}": torch.randn(sizes).to(torch.bfloat16) for n in range(entries)}
    order = random.Random(0).sample(list(maps), len(maps))
    total = sum(tensor.nbytes for tensor in maps.values()) / 1e6
    table = Table(title=f"{entries} maps {sizes} bfloat16, {total:.0f} MB")
    for column in ("format", "files", "MB", "write MB/s", "read entries/s", "read MB/s"):
        table.add_column(column, justify="left" if column == "format" else "right")
    folder = Path(tempfile.mkdtemp())
    readers: dict[str, Read] = {}
    rows: dict[str, list[str]] = {}
    for name, write in WAYS.items():
        place = folder / name.replace(" ", "_")
        begun = time.perf_counter()
        readers[name] = write(place, maps)
        seconds = time.perf_counter() - begun
        files = [path for path in place.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        rows[name] = [str(len(files)), f"{size:.0f}", f"{total / seconds:.0f}"]
    times: dict[str, list[float]] = {name: [] for name in readers}
    sums = {key: checksum(tensor) for key, tensor in maps.items()}
    for _ in range(repeats):
        for name, read in readers.items():
            begun = time.perf_counter()
            for key, tensor in read(order):
                assert checksum(tensor) == sums[key]
            times[name].append(time.perf_counter() - begun)
    for name in readers:
        seconds = median(times[name])
        table.add_row(name, *rows[name], f"{entries / seconds:.0f}", f"{total / seconds:.0f}")
    Console(width=110).print(table)
    shutil.rmtree(folder)


Maps = dict[str, torch.Tensor]
Read = Callable[[list[str]], Iterator[tuple[str, torch.Tensor]]]


def loose(place: Path, maps: Maps) -> Read:
    store = FeatureStore(place, memory_bytes=0)
    for key, tensor in maps.items():
        store.put(key, tensor)

    def read(order: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for key in order:
            store._recent.clear()
            yield key, store.get(key)  # type: ignore[misc]

    return read


def shards(place: Path, maps: Maps) -> Read:
    read = loose(place, maps)
    FeatureStore(place).pack(shard_bytes=64 << 20)
    store = FeatureStore(place, memory_bytes=0)

    def again(order: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for key in order:
            store._recent.clear()
            yield key, store.get(key)  # type: ignore[misc]

    del read
    return again


def webdataset(place: Path, maps: Maps) -> Read:
    import webdataset as wds

    place.mkdir()
    with wds.ShardWriter(str(place / "%06d.tar"), maxsize=64 << 20, verbose=0) as writer:
        for key, tensor in maps.items():
            writer.write({"__key__": key, "safetensors": save({"features": tensor})})

    def read(order: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        paths = [str(path) for path in sorted(place.glob("*.tar"))]
        for sample in wds.WebDataset(paths, shardshuffle=False):
            yield sample["__key__"], load(sample["safetensors"])["features"]

    return read


def lance(place: Path, maps: Maps) -> Read:
    import lance
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("features", pa.large_binary())])
    numbers = {key: number for number, key in enumerate(maps)}
    like = next(iter(maps.values()))

    def batches() -> Iterator[pa.RecordBatch]:
        for key, tensor in maps.items():
            data = tensor.view(torch.uint8).numpy().tobytes()
            yield pa.record_batch([[key], [data]], schema=schema)

    data = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(place))

    def read(order: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for key in order:
            found = data.take([numbers[key]], columns=["features"]).column(0)[0].as_buffer()
            tensor = torch.frombuffer(io.BytesIO(found.to_pybytes()).getbuffer(), dtype=torch.uint8)
            yield key, tensor.view(torch.bfloat16).reshape(like.shape).clone()

    return read


WAYS: dict[str, Callable[[Path, Maps], Read]] = {
    "safetensors, a file each": loose,
    "safetensors shards": shards,
    "WebDataset (in order)": webdataset,
    "Lance": lance,
}

if __name__ == "__main__":
    typer.run(main)
