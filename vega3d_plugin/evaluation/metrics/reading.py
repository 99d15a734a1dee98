"""Files of predictions and references to rows: JSON and JSON lines, at bounded cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .errors import RowProblem, ScoreError
from .rows import Row, shown

#: Longest line of a ``.jsonl`` file and largest ``.json`` file, in bytes.
MAX_LINE, MAX_FILE = 64 * 2**20, 512 * 2**20
#: Keys of ``.json`` files that are no list, under which benchmarks keep it.
LIST_KEYS = ("questions", "annotations", "data", "results", "rows")


def read_rows(path: str | Path) -> tuple[list[Row], list[str]]:
    """All rows of a file.

    Args:
        path: ``.jsonl``: one object a line; ``.json``: a list of objects, an object that holds one under one of
            :data:`LIST_KEYS`, or an object of lists of texts by id (which become rows of ``id`` and ``annotations``).

    Returns:
        The rows, and a message for each line or element that is none: truncated, nested too deep, NaN, a key twice.

    Raises:
        ScoreError: no such file, another suffix, not UTF-8, a ``.json`` file that is no JSON, or no rows at all.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".json", ".jsonl"):
        raise ScoreError(f"{path} is no file of rows: its name must end in .json or .jsonl.")
    rows: list[Row] = []
    bad: list[str] = []
    try:
        for where, found in _lines(path) if path.suffix == ".jsonl" else _elements(path):
            if isinstance(found, dict):
                rows.append(Row(unlogged(found), where))
            else:
                problem = found if isinstance(found, RowProblem) else f"a {type(found).__name__} in place of an object"
                bad.append(f"{where}: {str(problem).rstrip('.')}.")
    except OSError as error:
        raise ScoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows and not bad:
        raise ScoreError(f"{path} is empty: there are no rows in it. Did the run that wrote it end?")
    return rows, bad


def given_rows(rows: list[Any], name: str) -> tuple[list[Row], list[str]]:
    """Rows that were handed over as dictionaries."""
    if not rows:
        raise ScoreError(f"There are no {name}: the list is empty.")
    made = [(f"{name}[{place}]", row) for place, row in enumerate(rows)]
    good = [Row(unlogged(row), where) for where, row in made if isinstance(row, Mapping)]
    return good, [f"{where}: a {type(row).__name__}." for where, row in made if not isinstance(row, Mapping)]


def unlogged(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The question and the answer in a row that lmms-eval logged (``--log_samples``); other rows as they are.

    Such a row keeps the question's keys under ``doc`` or under the name of a metric, and what was generated under
    ``filtered_resps``.
    """
    if "filtered_resps" not in values and "resps" not in values:
        return values
    said = values.get("filtered_resps", values.get("resps"))
    while isinstance(said, list) and len(said) == 1:
        said = said[0]
    inner = [value for key, value in values.items() if isinstance(value, dict) and key != "input_media"]
    merged = {key: value for part in inner for key, value in part.items()}
    return {**{key: values[key] for key in ("doc_id",) if key in values}, **merged, "prediction": said}


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                if not line.endswith(b"\n"):
                    _skip_line(file)
                yield where, RowProblem(f"longer than {MAX_LINE:,} bytes")
            elif line.strip():
                yield where, _parsed(line)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
        pass


def _elements(path: Path) -> Iterator[tuple[str, Any]]:
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ScoreError(f"{path} has {size:,} bytes; at most {MAX_FILE:,} are read. Save its rows as .jsonl.")
    if not size:
        return
    found = _parsed(path.read_bytes())
    if isinstance(found, RowProblem):
        raise ScoreError(f"{path}: {found}.")
    if isinstance(found, dict):
        found = _list_of(found)
    if not isinstance(found, list):
        raise ScoreError(
            f"{path} holds a {type(found).__name__}. Expected is a list of rows, or an object with one under "
            f"{', '.join(LIST_KEYS)}."
        )
    for number, element in enumerate(found, 1):
        yield f"{path}, row {number}", element


def _list_of(found: dict[str, Any]) -> Any:
    for key in LIST_KEYS:
        if isinstance(found.get(key), list):
            return found[key]
    if found and all(isinstance(value, list) for value in found.values()):
        return [{"id": key, "annotations": value} for key, value in found.items()]
    return found


def _parsed(text: bytes) -> Any:
    """What the text holds, or a :class:`RowProblem` that says why it is no JSON."""
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        return RowProblem(f"not UTF-8: byte {error.object[error.start]:#04x} at place {error.start}")
    except RecursionError:
        return RowProblem("not a row: nested too deep")
    except RowProblem as problem:
        return problem
    except json.JSONDecodeError as error:
        return RowProblem(f"no JSON, or cut off: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        # A whole number of thousands of digits.
        return RowProblem(f"no usable JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise RowProblem(f"key {shown(key)} stands there twice")
        made[key] = value
    return made


def _constant(name: str) -> NoReturn:
    raise RowProblem(f"{name} is no number that can be scored")
