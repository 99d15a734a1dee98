"""Small files of a scene: text, JSON and matrices, each read within a bound and named in every error."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..contracts.errors import SceneError, near_misses

if TYPE_CHECKING:
    from torch import Tensor

# A list of 100,000 frames is 10 MB of text.
LARGEST_TEXT = 64 * 2**20
_SHOWN = 60


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """A UTF-8 file of at most ``limit`` bytes.

    Raises:
        SceneError: not there (with near misses), larger, or no UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise SceneError(f"{path} has {size:,} bytes, over {limit:,}: it is not such a text file.")
        return path.read_bytes()[: limit + 1].decode("utf-8-sig")
    except FileNotFoundError:
        raise SceneError(missing(path)) from None
    except UnicodeDecodeError as error:
        raise SceneError(f"{path} is no text: byte {error.start} is not UTF-8.") from None
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} cannot be read: {error}.") from error


def missing(path: Path) -> str:
    """The message for a file that is not there, with near misses."""
    if not path.parent.is_dir():
        return f"{path} does not exist, nor does the folder {path.parent}. Check the path."
    hint = near_misses(path.name, sorted(entry.name for entry in path.parent.iterdir())[:5000])
    return f"{path} does not exist.{hint or ' Check the path.'}"


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file that holds an object (``dict``) or a ``list``.

    Raises:
        SceneError: it cannot be read, is no JSON (with line and column), nested too deep, or holds something else.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SceneError(f"{path}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}).") from None
    except RecursionError:
        raise SceneError(f"{path} is nested too deep to be read.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise SceneError(f"{path} is no JSON: {error}.") from None
    if not isinstance(value, kind):
        wanted = "object" if kind is dict else "list"
        raise SceneError(f"{path} must hold a JSON {wanted}, found {type(value).__name__}.")
    return value


def numbers(text: str, where: str) -> list[float]:
    """The numbers of a line, separated by blanks or commas; NaN and infinity are numbers too.

    Raises:
        SceneError: a word is no number.
    """
    found = []
    for word in text.replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            raise SceneError(f"{where}: {brief(word)} is no number.") from None
    return found


def read_matrix(path: Path, shape: tuple[int, int] = (4, 4)) -> Tensor:
    """A text file that holds one matrix, float64; NaN and infinity are kept for the caller to judge.

    Raises:
        SceneError: it cannot be read, or holds other than rows x columns numbers.
    """
    found = numbers(read_text(path, 2**16), str(path))
    if len(found) != math.prod(shape):
        raise SceneError(f"{path}: expected {shape[0]}x{shape[1]} numbers, found {len(found)}.")
    return _tensor(np.array(found, dtype=np.float64).reshape(shape))


def as_matrix(value: Any, where: str, shapes: Sequence[tuple[int, int]] = ((4, 4),)) -> Tensor:
    """Nested lists of numbers, from JSON, to float64 ``[rows, columns]``.

    Raises:
        SceneError: no such lists.
    """
    try:
        if not (isinstance(value, list | tuple) and len(value) <= 4):
            raise ValueError
        matrix = np.array([[_number(entry) for entry in row] for row in value], dtype=np.float64)
        if matrix.shape not in [tuple(shape) for shape in shapes]:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wanted = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise SceneError(f"{where}: expected {wanted} numbers, found {brief(value)}.") from None
    return _tensor(matrix)


def _tensor(matrix: NDArray[np.float64]) -> Tensor:
    # Here, so that what reads names alone needs no torch.
    import torch

    return torch.from_numpy(matrix)


def as_number(value: Any, where: str) -> float:
    """A finite number from JSON.

    Raises:
        SceneError: it is none.
    """
    try:
        number = _number(value)
    except (TypeError, OverflowError):
        raise SceneError(f"{where}: expected a number, found {brief(value)}.") from None
    if not math.isfinite(number):
        raise SceneError(f"{where}: {number} is no finite number.")
    return number


def as_triple(value: Any, where: str) -> tuple[float, float, float]:
    """Three finite numbers from JSON.

    Raises:
        SceneError: anything else.
    """
    if not isinstance(value, list) or len(value) != 3:
        raise SceneError(f"{where}: expected 3 numbers, found {brief(value)}.")
    x, y, z = (as_number(each, where) for each in value)
    return x, y, z


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that say something, each with its place for messages; ``#`` begins a comment."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"{path}, line {number}", line.strip()


def below(root: Path, name: Any, where: str) -> Path:
    """The file ``name`` (as a scene's file writes it) in the folder ``root``.

    Raises:
        SceneError: no text, an absolute path, or one that leads out of the folder's parent: pictures may lie beside
            a folder of cameras, but not anywhere on the disk.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise SceneError(f"{where}: expected the name of a file, found {brief(name)}.")
    path = root / name
    # By the letter: a link that leads elsewhere was set by whoever owns the folder.
    fence = os.path.dirname(os.path.abspath(root))
    if os.path.commonpath([fence, os.path.abspath(path)]) != fence:
        raise SceneError(f"{where}: {brief(name)} leads out of {fence}. Give paths relative to {root}.")
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, not allowed, a circle of links
        raise SceneError(f"{where}: {brief(name)} is no usable path ({str(error).partition(':')[0]}).") from None
    return path


def is_there(path: Path) -> bool:
    """Whether it is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def brief(value: Any) -> str:
    """A value as it may stand in a message."""
    text = str(value) if isinstance(value, Path) else repr(value) if not isinstance(value, (list, dict)) else ""
    if not text:
        return f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@dataclass(frozen=True)
class FileContent:
    """Stands for the content of a view's files in its fingerprint, see :attr:`View.content`.

    Attributes:
        paths: files, hashed as they are.
        more: what else decides over the content, such as the number of a frame or a depth scale.
    """

    paths: tuple[Path, ...]
    more: str = ""

    def __call__(self) -> str:
        """The hashes of the files, and ``more``."""
        return " ".join([*(_file_hash(path) for path in self.paths), self.more])


def _file_hash(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}.") from error
    return _hash(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=65536)
def _hash(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()
