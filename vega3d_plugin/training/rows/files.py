"""Rows of JSON and JSONL files, found once and read one at a time."""

from __future__ import annotations

import glob
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...contracts.documents import DocumentError, parse_json
from ...contracts.errors import RowError, TrainError

SUFFIXES = (".json", ".jsonl")
_SPACE = " \t\r\n"


class RowFile:
    """One file: where each row begins and ends. Holds no rows and no open file, so copies of it are cheap.

    Args:
        path: ``.jsonl``: one object a line, empty lines are no rows; ``.json``: a list of objects.

    Raises:
        TrainError: no such file, another suffix, not UTF-8, or a ``.json`` file that is no list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in SUFFIXES:
            raise TrainError(f"{path} is no file of rows: its name must end in {' or '.join(SUFFIXES)}.")
        self.spans = array("q")
        try:
            find = self._lines() if path.suffix == ".jsonl" else self._elements()
            for start, end in find:
                self.spans.extend((start, end))
        except (OSError, UnicodeDecodeError) as error:
            raise TrainError(f"{path} cannot be read: {error}.") from error

    def __len__(self) -> int:
        return len(self.spans) // 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row.

        Raises:
            RowError: it is no JSON object.
        """
        start, end = self.spans[2 * index], self.spans[2 * index + 1]
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            row = parse_json(text)
        except DocumentError as error:
            raise RowError(f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise RowError(f"a JSON object is expected, found {type(row).__name__}")
        return row

    def _lines(self) -> Iterator[tuple[int, int]]:
        place = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield place, place + len(line)
                place += len(line)

    def _elements(self) -> Iterator[tuple[int, int]]:
        """Spans in bytes of the elements of the one list in the file."""
        text = self.path.read_text(encoding="utf-8")
        # Where rows end; what numbers they hold is looked at row by row.
        decode = json.JSONDecoder(parse_int=lambda digits: 0).raw_decode
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            raise TrainError(f"{self.path} is no list of rows: it begins with {text[at : at + 20]!r}, not with '['.")
        at = _skip(text, at + 1)
        place, counted = 0, 0
        while text[at : at + 1] != "]":
            try:
                _, end = decode(text, at)
            except json.JSONDecodeError as error:
                raise TrainError(f"{self.path} is no JSON: {error}.") from None
            except RecursionError:
                raise TrainError(
                    f"{self.path} is no file of rows: row {len(self.spans) // 2 + 1} is nested too deep."
                ) from None
            place += len(text[counted:at].encode())
            size = len(text[at:end].encode())
            yield place, place + size
            place, counted = place + size, end
            at = _skip(text, end)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "]":
                raise TrainError(f"{self.path} is no JSON: a ',' or ']' is missing at character {at}.")


class Rows(Sequence[dict[str, Any]]):
    """The rows of several files, one after the other.

    Args:
        files: paths or patterns such as ``data/*.jsonl``, whose files come sorted by name.

    Raises:
        TrainError: a file that is not there or cannot be read, a pattern without a match, or no rows at all.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = [RowFile(path) for path in find_files(files)]
        self.starts = [0]
        for file in self.files:
            self.starts.append(self.starts[-1] + len(file))
        if not len(self):
            raise TrainError(f"There are no rows in {', '.join(str(file.path) for file in self.files)}.")

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """One row. Raises :class:`RowError` when it is no JSON object."""
        file, row = self._at(index)
        return file[row]

    def file_of(self, index: int) -> Path:
        """The file that a row is in."""
        return self._at(index)[0].path

    def name(self, index: int) -> str:
        """What to call a row: its file, and its number there from 1."""
        file, row = self._at(index)
        # As a reader would write it: `recipes/qwen_vl/../smoke_data` is `recipes/smoke_data`.
        return f"{os.path.normpath(file.path)}, row {row + 1}"

    def _at(self, index: int) -> tuple[RowFile, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = next(i for i, start in enumerate(self.starts[1:]) if index < start)
        return self.files[number], index - self.starts[number]


def find_files(files: Sequence[str | Path]) -> list[Path]:
    """Paths and patterns to paths; the order is kept, and no file comes twice.

    Raises:
        TrainError: nothing of that name.
    """
    found: dict[Path, None] = {}
    for given in files:
        path = Path(given).expanduser()
        matches = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        matches = [match for match in matches if match.is_file()]
        if not matches:
            what = "no file matches" if any(sign in str(given) for sign in "*?[") else "there is no file"
            raise TrainError(f"data.files: {what} {given} (looked from {Path.cwd()}).")
        found |= dict.fromkeys(matches)
    return list(found)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
