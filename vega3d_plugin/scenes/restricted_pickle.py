"""A pickle of plain containers and arrays of numbers, read without running anything that it names."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import SceneError
from .files import brief, missing

#: The largest of the public files has some hundred MB.
LARGEST = 4 * 2**30
_KINDS = "biuf"


def read_pickle(path: Path) -> Any:
    """What a pickle holds: dicts (keys: text or numbers), lists, tuples, text, numbers, and :class:`StoredArray`.

    No class and no function that the file names is called: names of NumPy's arrays, types and scalars stand for
    classes of this module, every other name is an error. Cost grows with the size of the file and nothing else.

    Raises:
        SceneError: not there, no pickle, truncated, or it names something else (the message says what).
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise SceneError(f"{path} has {size:,} bytes, over {LARGEST:,}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise SceneError(missing(path)) from None
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}.") from error
    reader = _Reader(data, str(path))
    try:
        return reader.load()
    except SceneError:
        raise
    # A damaged pickle is an odd program: it may end in anything.
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise SceneError(
            f"{path} is no pickle that can be read, or is damaged: {said or type(error).__name__}."
        ) from None


class StoredArray:
    """An array of numbers, not yet unpacked."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, raw: Any = None, fortran: bool = False) -> None:
        self.shape, self.dtype, self.raw, self.fortran = shape, dtype, raw, fortran

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def unpack(self, where: str) -> NDArray[Any]:
        """The array.

        Raises:
            SceneError: no numbers, or shape and bytes do not fit.
        """
        shape = self.shape if isinstance(self.shape, tuple) else (self.shape,)
        sides = all(isinstance(side, int) and 0 <= side < 2**40 for side in shape)
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, bytes | bytearray) or not sides:
            raise SceneError(f"{where}: an array of something else than numbers, or a damaged one.")
        dtype = self.dtype.numeric(where)
        if math.prod(shape) * dtype.itemsize != len(self.raw):
            raise SceneError(f"{where}: {len(self.raw)} bytes for an array of {dtype} {list(shape)}.")
        return np.frombuffer(self.raw, dtype).reshape(shape, order="F" if self.fortran else "C")


class _Dtype:
    __slots__ = ("order", "text")

    def __init__(self, text: Any = None, *_: Any) -> None:
        self.text, self.order = text, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numeric(self, where: str) -> np.dtype[Any]:
        text, order = self.text, self.order if self.order in ("<", ">") else "="
        if isinstance(text, str) and len(text) <= 3 and text[:1] in _KINDS and text[1:] in ("1", "2", "4", "8"):
            return np.dtype(order + text)
        raise SceneError(f"{where}: an array of {brief(text)}; numbers are expected.")


@dataclass(frozen=True)
class _Call:
    """Stands for a function of NumPy: calls ours instead."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def bytes_of_nothing() -> bytes:
    """No bytes; a number as argument would ask for as many."""
    return b""


# The interpreter's own reader in Python: the one in C lets a few bytes claim gigabytes for its memo.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(BytesIO(data))
        self.where = where
        # Bytes of old protocols are text that is encoded: each costs as much as it gives, again and again.
        self.left = len(data)
        here = {
            "_reconstruct": _Call(lambda *_: StoredArray()),
            "scalar": _Call(self._scalar),
            "_frombuffer": _Call(lambda raw, dtype, shape, order: StoredArray(shape, dtype, raw, order == "F")),
        }
        self.names: dict[tuple[str, str], Any] = {
            (f"numpy.{package}.{module}", name): here[name]
            for package in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        }
        self.names |= {
            ("numpy", "dtype"): _Call(_Dtype),
            ("numpy", "ndarray"): _Call(lambda *_: StoredArray()),
            ("_codecs", "encode"): _Call(self._encoded),
            # What old protocols write for no bytes at all.
            ("builtins", "bytes"): _Call(bytes_of_nothing),
            ("__builtin__", "bytes"): _Call(bytes_of_nothing),
        }

    def find_class(self, module: str, name: str) -> Any:
        found = self.names.get((module, name))
        if found is None:
            raise SceneError(
                f"{self.where} names {brief(f'{module}.{name}')}, which is neither a plain container nor an array of "
                "NumPy. It is not read: a pickle may run any program. Use a file from a source you trust, or write "
                "it again with lists, dicts and arrays alone."
            )
        return found

    def get_extension(self, code: int) -> None:
        raise SceneError(f"{self.where} names extension {code}, which is not read.")

    def _scalar(self, dtype: Any, raw: Any = None) -> Any:
        return StoredArray((), dtype, raw).unpack(self.where).item()

    def _encoded(self, text: Any, coding: Any = None) -> bytes:
        if not isinstance(text, str) or coding != "latin1":
            raise SceneError(f"{self.where} encodes something else than bytes.")
        self.left -= len(text)
        if self.left < 0:
            raise SceneError(f"{self.where} unpacks to more than its own size: it was made to fill the memory.")
        return text.encode("latin1")

    def _key(self, key: Any) -> None:
        # A number of thousands of digits, or tuples within tuples, can take for ever to be compared.
        if not isinstance(key, str | bool) and not (isinstance(key, int | float) and abs(key) < 2**53):
            raise SceneError(f"{self.where} has a key of the type {type(key).__name__}; text and numbers are keys.")

    def _set_item(self) -> None:
        self._key(self.stack[-2])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def _set_items(self) -> None:
        for key in self.stack[::2]:
            self._key(key)
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def _make_dict(self) -> None:
        for key in self.stack[::2]:
            self._key(key)
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def _refuse(self) -> None:
        raise SceneError(f"{self.where} holds a set or an object, which is neither a plain container nor an array.")

    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.DICT[0]] = _make_dict
    for _code in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS):
        dispatch[_code[0]] = _refuse
