"""Arrays of NumPy from files of anybody: ``.npy`` and ``.npz``, without pickles, no larger than the file is."""

from __future__ import annotations

import math
import os
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import Vega3dError
from ..contracts.printable import first_line

Array = NDArray[Any]
#: Bytes that arrays of a compressed archive may have whatever its size, and how many for each of its bytes beyond.
SMALL, RATIO = 1 << 26, 200
#: Arrays of one archive.
MAX_ARRAYS = 10_000
# As numpy.lib.format writes it. What else Python could read there is no header of a plain array.
_HEADER = re.compile(
    r"\{'descr': '(?P<dtype>[<>|=]?[a-zA-Z?][0-9]*)', 'fortran_order': (?:True|False), "
    r"'shape': \((?P<shape>(?:[0-9]+, ?)*[0-9]*),?\),? ?\} *\n?"
)
_MAX_HEADER = 10_000


def read_array(file: Path, error: type[Vega3dError]) -> Array:
    """The array of a ``.npy`` file, in native byte order, in memory of its own.

    Raises:
        Vega3dError: of the given type: no such file, no plain array, or one that is larger than the file.
    """
    try:
        if not os.path.isfile(file):
            raise ValueError("there is no such file")
        with file.open("rb") as opened:
            return _read(opened, file.stat().st_size)
    except Exception as problem:
        raise error(f"{file} is damaged or no plain array ({_reason(problem)}). Write it again.") from problem


def read_arrays(file: Path, error: type[Vega3dError]) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by name, as :func:`read_array` gives them.

    Raises:
        Vega3dError: of the given type: as :func:`read_array`; an archive that unpacks to far more than its size.
    """
    try:
        if not os.path.isfile(file):
            raise ValueError("there is no such file")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > SMALL + RATIO * file.stat().st_size or len(entries) > MAX_ARRAYS:
                raise ValueError(f"it unpacks to {len(entries):,} entries of {unpacked:,} bytes")
            found: dict[str, Array] = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in found or not entry.filename.endswith(".npy"):
                    raise ValueError(f"the entry {entry.filename!r} is there twice, or no array")
                with archive.open(entry) as opened:
                    found[name] = _read(opened, entry.file_size)
            return found
    except Exception as problem:
        raise error(f"{file} is damaged or no archive of arrays ({_reason(problem)}). Write it again.") from problem


def _read(opened: IO[bytes], size: int) -> Array:
    version = np.lib.format.read_magic(opened)
    wide = 2 if version == (1, 0) else 4
    length = int.from_bytes(opened.read(wide), "little")
    text = opened.read(min(length, _MAX_HEADER)).decode("latin-1")
    # NumPy evaluates the header, so what is evaluated must be plain.
    match = _HEADER.fullmatch(text)
    if length > _MAX_HEADER or match is None:
        raise ValueError("its header is none of a plain array")
    dtype = np.dtype(match["dtype"])
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    if dtype.kind in "VM":
        raise ValueError(f"its dtype is {match['dtype']!r}")
    shape = [int(side) for side in match["shape"].replace(" ", "").split(",") if side]
    expected = math.prod(shape) * dtype.itemsize
    if 8 + wide + length + expected != size or dtype.itemsize < 1:
        raise ValueError(f"an array {shape} of {match['dtype']!r} takes {expected:,} bytes, the file has {size:,}")
    data = opened.read(expected)
    if len(data) < expected:
        raise ValueError("it breaks off")
    flat: NDArray[Any] = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(tuple(shape), order="F" if "'fortran_order': True" in text else "C")


def _reason(problem: Exception) -> str:
    return first_line(problem) or type(problem).__name__
