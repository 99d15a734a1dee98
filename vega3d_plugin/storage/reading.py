"""The one door for files that others wrote: JSON, and what it must hold; tensors by name.

Whatever the bytes of a file, the right value comes back, or an error of the type that the caller asked for, which
names the file and the key. Pickles are in ``pickles.py``, arrays in ``arrays.py``; YAML is for settings and recipes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..contracts.documents import DocumentError, parse_json, read_bytes
from ..contracts.errors import Vega3dError
from ..contracts.paths import path_problem
from ..contracts.printable import brief, first_line, one_line

#: Bytes of a JSON file. Indices of the largest models have 10 MB, the state of a long training as much.
MAX_JSON = 1 << 26
#: Numbers in a model's config: above the largest vocabularies and lengths of text, below what fills a memory.
MAX_SIZE = 1 << 24
#: Parts of a model that are built one by one: none has as many layers, and a loop over a billion never ends.
MAX_LAYERS = 512
_COUNTS = ("layers", "depth", "blocks")
# The objects read while somebody listens, see :func:`noting_reads`.
_reads: ContextVar[list[JsonObject] | None] = ContextVar("_reads", default=None)


class JsonObject(dict[str, Any]):
    """An object out of a JSON file, which knows where it comes from: a key that is not there is an error that says so.

    Attributes:
        file: where it was read.
        error: what is raised.
        inside: the keys around it in the file.
    """

    def __init__(self, values: Mapping[str, Any], file: Path | str, error: type[Vega3dError], inside: str = "") -> None:
        super().__init__(values)
        self.file, self.error, self.inside = file, error, inside

    def __missing__(self, key: str) -> Any:
        raise self.wrong(key, "is missing")

    def wrong(self, key: str, problem: str) -> Vega3dError:
        """The error for a key: file, key, what is wrong."""
        return self.error(f"{self.file}: {self.inside}{one_line(str(key))} {problem}.")

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number between ``low`` and ``high``; one written as text is taken too.

        Raises:
            Vega3dError: none of that name and no default, something else, or out of range.
        """
        value = self[key] if default is None else self.get(key, default)
        number = _number(value)
        if number is None or number != int(number) or not low <= number <= high:
            raise self.wrong(key, f"is {brief(value)}, expected a whole number from {low:,} to {high:,}")
        return int(number)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; one written as text is taken too. Raises as :meth:`integer`."""
        value = self[key] if default is None else self.get(key, default)
        number = _number(value)
        if number is None:
            raise self.wrong(key, f"is {brief(value)}, expected a number")
        return float(number)

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises as :meth:`integer`."""
        value = self[key] if default is None else self.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, f"is {brief(value)}, expected a text")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers. Raises as :meth:`integer`."""
        value = self[key]
        found = [_number(item) for item in value] if isinstance(value, list | tuple) else [None]
        if None in found:
            raise self.wrong(key, f"is {brief(value)}, expected a list of numbers")
        return [float(item) for item in found if item is not None]

    def mapping(self, key: str) -> JsonObject:
        """An object. Raises as :meth:`integer`."""
        value = self[key]
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"is {brief(value)}, expected an object")
        return JsonObject(value, self.file, self.error, f"{self.inside}{one_line(str(key))}.")

    def check_sizes(self, high: int = MAX_SIZE) -> JsonObject:
        """Refuse numbers that no model has, before one is built of them; returns the object itself.

        Args:
            high: of any number; numbers of layers have a bound of their own.

        Raises:
            Vega3dError: names the key.
        """
        waiting: list[tuple[str, Any]] = list(self.items())
        while waiting:
            key, value = waiting.pop()
            last = key.rpartition(".")[2].lower()
            if isinstance(value, Mapping):
                waiting.extend((f"{key}.{name}", inner) for name, inner in value.items())
            elif isinstance(value, list):
                waiting.extend((key, inner) for inner in value)
            elif isinstance(value, int) and not isinstance(value, bool):
                most = MAX_LAYERS if any(word in last for word in _COUNTS) else high
                if abs(value) > most:
                    raise self.wrong(key, f"is {brief(value)}, more than any model has ({most:,})")
        return self


def read_json(file: Path, error: type[Vega3dError], *, limit: int = MAX_JSON, missing: str = "") -> JsonObject:
    """An object from a JSON file.

    Args:
        file: its path.
        error: what to raise.
        limit: bytes at most.
        missing: the message when there is no such file.

    Raises:
        Vega3dError: of the given type: no such file, one that cannot be read, or one that holds something else.
    """
    try:
        data = read_bytes(file, limit)
    except FileNotFoundError:
        raise error(missing or f"{file} does not exist.") from None
    except DocumentError as problem:
        raise error(f"{file} cannot be read: {problem}.") from None
    found = parse_object(data, file, error)
    reads = _reads.get()
    if reads is not None:
        reads.append(found)
    return found


def parse_object(data: bytes | str, where: Path | str, error: type[Vega3dError]) -> JsonObject:
    """An object from JSON text, such as metadata hold; ``where`` is for messages. Raises as :func:`read_json`."""
    try:
        value = parse_json(data)
    except DocumentError as problem:
        raise error(f"{where} is no valid JSON: {problem}.") from None
    if not isinstance(value, dict):
        raise error(f"{where} holds a {type(value).__name__}, expected an object.")
    return JsonObject(value, where, error)


@contextmanager
def noting_reads() -> Iterator[list[JsonObject]]:
    """A list of the objects that are read meanwhile, to say afterwards which of them something goes back to."""
    reads: list[JsonObject] = []
    token = _reads.set(reads)
    try:
        yield reads
    finally:
        _reads.reset(token)


def named_files(index: Path, error: type[Vega3dError]) -> list[Path]:
    """The files that an index of shards names, sorted; whether they are there is not looked at.

    Raises:
        Vega3dError: of the given type: see :func:`shards_of`.
    """
    return sorted(set(shards_of(index, error).values()))


def shards_of(index: Path, error: type[Vega3dError]) -> dict[str, Path]:
    """For each tensor that an index names, the file that it is said to be in.

    Only plain names are taken, since shards lie beside their index: no folder, no way up, no other place. A shard may
    itself be a link, as in the cache of the hub.

    Raises:
        Vega3dError: of the given type: no index, or names that are none.
    """
    names = read_json(index, error).mapping("weight_map")
    return {key: index.parent / _plain_name(names, key) for key in names}


def _plain_name(names: JsonObject, key: str) -> str:
    name = names[key]
    plain = isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\"} & set(name)
    if not plain or path_problem(name):
        raise names.wrong(key, f"is {brief(name)}, expected the name of a file beside the index")
    return str(name)


@contextmanager
def open_safetensors(file: Path, error: type[Vega3dError], advice: str = "Download it again.") -> Iterator[Any]:
    """An open file of safetensors: ``keys()``, ``get_tensor``, ``get_slice``, ``metadata()``.

    Raises:
        Vega3dError: of the given type: no such file, or a damaged one; also for what goes wrong while it is read.
    """
    # Without torch, commands that only look at files start at once.
    from safetensors import safe_open

    try:
        if not os.path.isfile(file):
            raise FileNotFoundError("there is no such file")
        with safe_open(file, framework="pt") as opened:
            yield opened
    except Vega3dError:
        raise
    except Exception as problem:
        reason = f"{type(problem).__name__}: {first_line(problem)}"
        raise error(f"{file} is damaged or incomplete ({reason}). {advice}") from problem


def _number(value: Any) -> float | int | None:
    """A finite number, or None."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) <= 40 else None
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
