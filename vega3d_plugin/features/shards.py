"""Many entries in one file, so that a hundred thousand clips are a few thousand files.

A shard is a safetensors file: its header says where each entry's tensors lie, its metadata hold each entry's record. It
is written once, under a name that nobody else uses, and never changed; so any number of writers need no lock. What
shards hold is found in their headers. ``manifest.json`` holds the same for all shards that its writer knew, so that a
store of thousands of them opens with one read; a shard that it does not know is read as if there were none.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..contracts.documents import DocumentError, parse_json
from .entries import EntryError, make_record
from .forms import SCALE, TENSOR
from .places import Place

if TYPE_CHECKING:
    from torch import Tensor

SHARDS, MANIFEST = "shards", "manifest.json"
MANIFEST_FORMAT = 1
#: Bytes of a shard, above which no entry is added.
SHARD_BYTES = 512 << 20
# Bytes of a header: a shard of the smallest maps has some ten thousand entries.
_HEADER_BYTES = 100 << 20
_HEADERS_AT_ONCE = 16
_BETWEEN = ":"
#: Of torch, with their bytes, by the names that safetensors has for them.
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I8": ("int8", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Where a tensor lies: bytes of the file from ``start`` to ``stop``, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Packed:
    """An entry in a shard.

    Attributes:
        shard: name of its file.
        spans: of its tensors, by name.
        record: as in a file of its own.
    """

    shard: str
    spans: Mapping[str, Span]
    record: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(span.stop - span.start for span in self.spans.values())


Shard = dict[str, Packed]


def write_shard(place: Place, entries: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, Shard]:
    """Write entries into a new shard; returns its name and what it holds.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    digits = secrets.token_hex(16)
    name = f"{SHARDS}/{digits[:2]}/{digits}.safetensors"
    tensors = {f"{key}{_BETWEEN}{part}": t for key, parts in entries.items() for part, t in parts.items()}
    records = {key: json.dumps(make_record(key, parts)) for key, parts in entries.items()}
    data = save(tensors, records)
    place.write(name, data)
    return name, read_header(name, data, len(data))


def read_header(name: str, data: bytes, size: int) -> Shard:
    """What a shard holds, from its first bytes.

    Args:
        name: of the file.
        data: at least its header.
        size: bytes of the whole file.

    Raises:
        EntryError: it is damaged, or no shard.
    """
    length = header_length(data, size)
    header, texts = _parsed(data, length)
    try:
        records = {key: parse_json(text) for key, text in texts.items() if isinstance(text, str)}
    except DocumentError as error:
        raise EntryError(f"its records cannot be read: {error}") from None
    spans: dict[str, dict[str, Span]] = {}
    for full, about in header.items():
        key, _, part = full.rpartition(_BETWEEN)
        spans.setdefault(key, {})[part] = _span(full, about, 8 + length, size)
    shard = {}
    for key, parts in spans.items():
        record = records.get(key)
        if TENSOR not in parts or not isinstance(record, dict):
            raise EntryError(f"the entry {key[:60]!r} lacks its tensor or its record")
        shard[key] = Packed(name, parts, record)
    return shard


def header_length(data: bytes, size: int) -> int:
    """Bytes of the header of a safetensors file, from its first eight.

    Raises:
        EntryError: no file has such a header.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(size - 8, _HEADER_BYTES):
        raise EntryError(f"its header is said to have {length:,} bytes, the file has {size:,}")
    return length


def _parsed(data: bytes, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A header's tensors and its metadata."""
    try:
        header = parse_json(data[8 : 8 + length])
    except DocumentError as error:
        raise EntryError(f"its header cannot be read: {error}") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise EntryError("its header is that of no safetensors file")
    return header, metadata


def _span(name: str, about: Any, first: int, size: int) -> Span:
    try:
        dtype, shape = about["dtype"], tuple(about["shape"])
        start, stop = (first + at for at in about["data_offsets"])
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, start - first, stop - first))
        item = DTYPES[dtype][1]
    except (KeyError, TypeError, ValueError):
        whole, item, shape, start, stop, dtype = False, 1, (), 0, 0, ""
    if not whole or stop > size or stop - start != item * math.prod(shape):
        raise EntryError(f"its header is wrong about the tensor {name[:60]!r}")
    return Span(dtype, shape, start, stop)


def read_packed(place: Place, packed: Packed) -> dict[str, Tensor]:
    """The tensors of an entry in a shard, read with one call.

    Raises:
        FileNotFoundError: the shard is gone: another process has put its entries into another one.
        OSError: it cannot be read.
        EntryError: it has become shorter.
    """
    start = min(span.start for span in packed.spans.values())
    stop = max(span.stop for span in packed.spans.values())
    if stop - start > 2 * packed.bytes + 4096:
        # Tensors are sorted by the size of their numbers, so a scale may lie far from what it scales.
        parts = {n: memoryview(place.read(packed.shard, span.start, span.stop)) for n, span in packed.spans.items()}
    else:
        data = memoryview(place.read(packed.shard, start, stop))
        parts = {n: data[span.start - start : span.stop - start] for n, span in packed.spans.items()}
    return {name: tensor_of(parts[name], span) for name, span in packed.spans.items()}


def tensor_of(data: memoryview, span: Span) -> Tensor:
    """A tensor of bytes; it is not to be written to.

    Raises:
        EntryError: there are fewer or more bytes than it has.
    """
    import torch

    if len(data) != span.stop - span.start:
        raise EntryError(f"the shard ends within it: {len(data):,} of {span.stop - span.start:,} bytes are there")
    with warnings.catch_warnings():
        # Bytes cannot be written to; nobody does.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=getattr(torch, DTYPES[span.dtype][0])).reshape(span.shape)


def parse_entry(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the record of a file of one entry, from its bytes.

    Raises:
        EntryError: it is damaged.
    """
    length = header_length(data, len(data))
    header, record = _parsed(data, length)
    spans = {name: _span(name, about, 8 + length, len(data)) for name, about in header.items()}
    if TENSOR not in spans:
        raise EntryError("it holds no features")
    view = memoryview(data)
    return {n: tensor_of(view[s.start : s.stop], s) for n, s in spans.items() if n in (TENSOR, SCALE)}, record


class ShardIndex:
    """What the shards of a place hold. Threads may share it.

    Args:
        place: of the store.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._shards: dict[str, Shard] = {}
        self._entries: dict[str, Packed] = {}
        #: Shards that cannot be read, with the reason.
        self.damaged: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Packed | None:
        """Where an entry lies, as far as is known."""
        return self._entries.get(key)

    def entries(self) -> dict[str, Packed]:
        """All that is known."""
        with self._lock:
            return dict(self._entries)

    def shards(self) -> dict[str, Shard]:
        """The same by shard, entries that lie in several in each of them."""
        with self._lock:
            return dict(self._shards)

    def add(self, name: str, shard: Shard) -> None:
        """Take in a shard that was just written."""
        with self._lock:
            self._shards[name] = shard
            self._entries.update(shard)

    def drop(self, names: Iterable[str]) -> None:
        """Forget shards that are gone."""
        with self._lock:
            for name in names:
                self._shards.pop(name, None)
            self._entries = {key: packed for shard in self._shards.values() for key, packed in shard.items()}

    def refresh(self) -> None:
        """Look which shards there are now, and read the headers of those that are new.

        Raises:
            OSError: the place cannot be looked into.
        """
        found = dict(self.place.names(SHARDS))
        with self._lock:
            known = set(self._shards)
        new = {name: size for name, size in found.items() if name not in known and name.endswith(".safetensors")}
        read = self._from_manifest(new) if new else {}
        missing = {name: size for name, size in new.items() if name not in read and name not in self.damaged}
        with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
            for name, shard in zip(missing, pool.map(self._header, missing, missing.values()), strict=True):
                if shard is not None:
                    read[name] = shard
        with self._lock:
            self._shards.update(read)
        self.drop(known - set(found))

    def write_manifest(self) -> None:
        """Write down what all shards hold.

        Raises:
            OSError: it cannot be written.
        """
        shards = {name: {key: _plain(packed) for key, packed in shard.items()} for name, shard in self.shards().items()}
        sizes = {name: size for name, size in self.place.names(SHARDS) if name in shards}
        values = {"format": MANIFEST_FORMAT, "bytes": sizes, "shards": {name: shards[name] for name in sizes}}
        self.place.write(MANIFEST, json.dumps(values, separators=(",", ":")).encode())

    def _header(self, name: str, size: int) -> Shard | None:
        try:
            data = self.place.read(name, 0, 8)
            data += self.place.read(name, 8, 8 + header_length(data, size))
            return read_header(name, data, size)
        except FileNotFoundError:
            return None
        except (EntryError, OSError) as error:
            self.damaged[name] = str(error)
            return None

    def _from_manifest(self, wanted: Mapping[str, int]) -> dict[str, Shard]:
        """Of these shards, those that the manifest knows at this size; none where it is damaged."""
        with suppress(OSError, DocumentError, EntryError, AttributeError, TypeError, KeyError, ValueError):
            values = parse_json(self.place.read(MANIFEST))
            if values["format"] == MANIFEST_FORMAT:
                return {
                    name: {key: _packed(name, about, wanted[name]) for key, about in shard.items()}
                    for name, shard in values["shards"].items()
                    if wanted.get(name) == values["bytes"][name]
                }
        return {}


def _plain(packed: Packed) -> dict[str, Any]:
    spans = {name: [s.dtype, list(s.shape), s.start, s.stop] for name, s in packed.spans.items()}
    return {"at": spans, "record": dict(packed.record)}


def _packed(name: str, about: Mapping[str, Any], size: int) -> Packed:
    spans = {
        part: _span(part, {"dtype": dtype, "shape": shape, "data_offsets": (start, stop)}, 0, size)
        for part, (dtype, shape, start, stop) in about["at"].items()
    }
    record = about["record"]
    if TENSOR not in spans or not isinstance(record, dict):
        raise EntryError("the manifest is damaged")
    return Packed(name, spans, record)
