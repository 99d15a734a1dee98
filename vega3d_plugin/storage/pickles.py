"""Pickled files of weights: what is in them is looked at before torch reads them.

``torch.load(weights_only=True)`` runs no code of a file, but it still does what the file says: ``bytearray(10**12)`` is
allowed and fills the memory, tuples nested a million times end the process when they are hashed, a compressed archive
unpacks to a thousand times its size, and a tensor of one number may claim a billion. Weights need none of that.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..contracts.errors import Vega3dError
from ..contracts.printable import brief, first_line

#: What pickles of tensors name. Anything else is refused, whether or not torch would take it.
PLAIN = {
    ("collections", "OrderedDict"), ("torch", "Size"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state"),
}  # fmt: skip
#: Operations of one pickle; a tensor takes 30.
MAX_STEPS = 1_000_000
#: Bytes of one pickle, which holds names and shapes and no numbers; a tensor takes 100.
MAX_PICKLE = 1 << 24
#: Tuples within each other; a tensor has four.
MAX_NESTED = 32
# The first value in a file of the format before torch 1.6, in which five pickles come before the numbers.
_MAGIC = 0x1950A86A20F9469CFC6C
_PARTS = 5
# Operations that call something in another way than pickles of tensors do.
_CALLS = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")


def load_pickle(file: Path, error: type[Vega3dError]) -> Any:
    """What a file of weights holds: tensors, and mappings, lists and plain values around them. On the CPU.

    Args:
        file: written by ``torch.save``, in its present format or that before torch 1.6.
        error: what to raise.

    Raises:
        Vega3dError: of the given type: no such file, a file that holds or names anything but tensors and plain values,
            or tensors larger than the file.
    """
    try:
        if not os.path.isfile(file):
            raise _RefusedError("there is no such file")
        archive = _check(file)
        # Pickles can run code; weights_only refuses anything but tensors. Archives are mapped, not read.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
        _check_tensors(found, file)
    except Exception as problem:
        raise error(
            f"{file} cannot be read as plain weights ({_reason(problem)}). Pickles that hold more than tensors are "
            "refused, because reading them could run code."
        ) from problem
    return found


def check_pickle(file: Path, error: type[Vega3dError]) -> None:
    """Look at a file of weights that another library is about to read. Raises as :func:`load_pickle`."""
    try:
        _check(file)
    except Exception as problem:
        raise error(f"{file} cannot be read as plain weights ({_reason(problem)}).") from problem


class _RefusedError(Exception):
    """Why a file is not given to torch."""


def _reason(problem: Exception) -> str:
    return str(problem) if isinstance(problem, _RefusedError) else f"{type(problem).__name__}: {first_line(problem)}"


def _check(file: Path) -> bool:
    """Look at the pickles of a file; True when it is an archive."""
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            opened.seek(0)
            for part in range(_PARTS):
                _check_pickle(opened, first=not part)
            return False
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch looks entries up whatever their case.
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise _RefusedError("two entries of the archive have one name")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise _RefusedError(
                    "the archive is compressed, or larger inside than the file; torch.save writes no such"
                )
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2].lower() == "data.pkl"]
        if len(pickles) != 1:
            raise _RefusedError(f"the archive has {len(pickles)} entries data.pkl, torch.save writes one")
        if pickles[0].file_size > MAX_PICKLE:
            raise _RefusedError(f"the pickle in it has {pickles[0].file_size:,} bytes, more than {MAX_PICKLE:,}")
        with archive.open(pickles[0]) as opened:
            _check_pickle(opened)
    return True


def _check_pickle(opened: IO[bytes], first: bool = False) -> None:
    """Go through one pickle without doing what it says."""
    stack: list[int | None] = []
    kept: dict[int, int] = {}
    began = 0 if not opened.seekable() else opened.tell()
    for steps, (operation, argument, place) in enumerate(pickletools.genops(opened)):
        name = operation.name
        if steps > MAX_STEPS or (place or 0) - began > MAX_PICKLE:
            raise _RefusedError(f"it has more than {MAX_STEPS:,} steps or {MAX_PICKLE:,} bytes")
        if name in _CALLS or (name == "GLOBAL" and not _plain(str(argument))):
            raise _RefusedError(f"it names {brief(str(argument or name).replace(' ', '.', 1), 80)}, which is no tensor")
        if first and name.startswith("LONG") and argument != _MAGIC:
            raise _RefusedError("it is no file of torch.save")
        _follow(operation, argument, stack, kept)
    if first and steps != 2:
        raise _RefusedError("it is no file of torch.save")


def _follow(operation: Any, argument: Any, stack: list[int | None], kept: dict[int, int]) -> None:
    """Keep book of how deep tuples lie within each other: for each value on the stack, None for a mark."""
    name = operation.name
    if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        kept[len(kept) if name == "MEMOIZE" else argument] = (stack and stack[-1]) or 0
        return
    if name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(kept.get(argument, 0))
        return
    taken: list[int] = []
    for kind in reversed(operation.stack_before):
        if kind is pickletools.stackslice:
            while stack and stack[-1] is not None:
                taken.append(stack.pop() or 0)
        elif not stack:
            raise _RefusedError("it takes more values than it has")
        else:
            taken.append(stack.pop() or 0)
    depth = max(taken, default=0) + name.startswith("TUPLE")
    if depth > MAX_NESTED:
        raise _RefusedError(f"tuples are nested deeper than {MAX_NESTED} in it")
    stack.extend(None if kind is pickletools.markobject else depth for kind in operation.stack_after)


def _plain(named: str) -> bool:
    module, _, name = named.partition(" ")
    if (module, name) in PLAIN or (module in ("torch", "torch.storage") and name.endswith("Storage")):
        return True
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def _check_tensors(found: Any, file: Path) -> None:
    """Refuse tensors that are none, and such as are larger than what the file holds."""
    size, stored = file.stat().st_size, 0
    seen: set[int] = set()
    for tensor in _tensors(found):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _RefusedError(f"it holds a tensor of layout {tensor.layout} on {tensor.device}, not plain numbers")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise _RefusedError(f"a tensor {list(tensor.shape)} in it is larger than its {storage.nbytes():,} bytes")
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            stored += storage.nbytes()
    if stored > size:
        raise _RefusedError(f"its tensors have {stored:,} bytes, the file {size:,}")


def _tensors(found: Any) -> Iterator[Tensor]:
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
