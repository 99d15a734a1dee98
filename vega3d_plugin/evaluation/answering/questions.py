"""The questions in rows of data: one for each answer, with an id that an answer is found by again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...contracts.errors import BadRowsError, RowError
from ...recipes.blocks import DataSettings
from ...training.data import BadRow, list_rows
from ...training.rows.conversation import Conversation, read_conversation
from ...training.rows.files import Rows
from ..metrics.rows import ID_KEYS

#: Stands for the answer of a row that ends with its question; the reader of rows wants one.
NO_ANSWER = "-"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        number: its place among all questions, from 0.
        id: of the question.
        row: what the file says of it.
        conversation: the turns up to its answer, which is the last one.
        expected: that answer; None where the row has none.
        where: its file and row, for messages.
    """

    number: int
    id: str
    row: Mapping[str, Any]
    conversation: Conversation
    expected: str | None
    where: str

    @property
    def media(self) -> str:
        """Names its pictures: equal for questions about the same ones."""
        return repr([(medium.kind, str(medium.source)) for medium in self.conversation.media])


class Questions(Sequence[Question]):
    """The questions of files, read when they are asked for.

    Args:
        settings: the files, and how their rows are read.
        limit: rows at most, from the first.

    Attributes:
        left_out: rows that cannot be used, with ``skip_bad_rows``.

    Raises:
        TrainError: files that cannot be read.
        BadRowsError: rows that cannot be used or have the id of another, and ``skip_bad_rows`` is off; or no others.
    """

    def __init__(self, settings: DataSettings, limit: int | None = None) -> None:
        self.settings, self.rows = settings, Rows(settings.files)
        self.left_out: list[BadRow] = []
        self._places: list[tuple[int, int, str]] = []
        known: dict[str, str] = {}
        numbers = range(len(self.rows))[:limit]
        for number in numbers:
            name = self.rows.name(number)
            try:
                found = self._ids(number)
                twice = next((id for id in found if id in known), None)
                if twice is not None:
                    raise RowError(f"its id {twice} is that of {known[twice]} too; answers could not be told apart")
            except RowError as error:
                self.left_out.append(BadRow(name, str(error)))
                continue
            known |= dict.fromkeys(found, name)
            self._places += [(number, place, id) for place, id in enumerate(found)]
        if self.left_out and not (settings.skip_bad_rows and self._places):
            advice = "" if settings.skip_bad_rows else "\nCorrect them, or pass --skip-bad-rows to leave them out."
            raise BadRowsError(
                f"{len(self.left_out)} of {len(numbers)} rows cannot be used:\n{list_rows(self.left_out)}{advice}"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        """One question, whose row is read anew."""
        row, place, id = self._places[number]
        values, conversation, answered = self._read(row)
        end = [at for at, turn in enumerate(conversation.turns) if turn.role == "assistant"][place]
        part = Conversation(conversation.turns[: end + 1])
        last = end + 1 == len(conversation.turns)
        expected = part.turns[-1].text.strip() if answered or not last else None
        return Question(number, id, values, part, expected, self.rows.name(row))

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def files(self) -> list[dict[str, Any]]:
        """Of each file: path, rows, bytes, and a SHA-256 of its content."""
        return [
            {
                "path": str(file.path), "rows": len(file), "bytes": file.path.stat().st_size,
                "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest(),
            }
            for file in self.rows.files
        ]  # fmt: skip

    def _ids(self, number: int) -> list[str]:
        """The id of each question of a row: the row's own, with the place of the answer behind it if it has several."""
        values, conversation, _ = self._read(number)
        count = sum(turn.role == "assistant" for turn in conversation.turns)
        own = row_id(values)
        if own is None:
            file = self.rows.file_of(number)
            own = f"{file.name}#{self.rows.name(number).rpartition(' ')[2]}"
        return [own] if count == 1 else [f"{own}#{place + 1}" for place in range(count)]

    def _read(self, number: int) -> tuple[dict[str, Any], Conversation, bool]:
        values = self.rows[number]
        root = self.settings.media_root
        folder = self.rows.file_of(number).parent if root is None else Path(root).expanduser()
        whole, answered = _with_answer(values)
        return values, read_conversation(whole, self.settings, folder), answered


def row_id(values: Mapping[str, Any]) -> str | None:
    """The id that a row gives itself, as ``vega3d score`` reads it; None without one.

    Raises:
        RowError: it is neither a text nor a whole number.
    """
    key = next((key for key in ID_KEYS if values.get(key) is not None), None)
    if key is None:
        return None
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(f"key {key!r} is {value!r:.60}; the id of a question is a text or a whole number")
    return str(value)


def _with_answer(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The row, and whether it ends with an answer; one that ends with a question is given :data:`NO_ANSWER`."""
    for key, role, text in (("conversations", "from", "value"), ("messages", "role", "content")):
        turns = row.get(key)
        before = turns if isinstance(turns, list) else []
        last = before[-1] if before else None
        if isinstance(last, Mapping) and last.get(role) in ("human", "user"):
            answer = {role: "gpt" if role == "from" else "assistant", text: NO_ANSWER}
            return {**row, key: [*before, answer]}, False
    return row, True
