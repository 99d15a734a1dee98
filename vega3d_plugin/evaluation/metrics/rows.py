"""Rows of predictions and references: checked values, asked for by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import RowProblem

#: Keys that can name the question of a row, the first that is there.
ID_KEYS = ("sample_id", "question_id", "id", "idx", "doc_id")
#: Keys that can hold what the model said, besides ``answer``.
ANSWER_KEYS = ("pred_response", "prediction", "response")
#: Longest text that is scored, in characters: a caption has hundreds.
MAX_CHARACTERS = 20_000
#: Largest coordinate of a box, in metres.
MAX_METRES = 1e6


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: its keys; those of ``metadata`` count as its own, after them.
        where: its file and line, for messages.
        reference: whether it is of the benchmark, and not of a model.
    """

    values: Mapping[str, Any]
    where: str
    reference: bool = False

    def first(self, *keys: str) -> tuple[str, Any] | None:
        """The first of ``keys`` that is there and not null, with its value; None when none is."""
        metadata = self.values.get("metadata")
        for place in (self.values, metadata if isinstance(metadata, dict) else {}):
            for key in keys:
                if place.get(key) is not None:
                    return key, place[key]
        return None

    def need(self, *keys: str) -> tuple[str, Any]:
        """As :meth:`first`. Raises :class:`RowProblem` when none of the keys is there."""
        found = self.first(*keys)
        if found is None:
            there = ", ".join(sorted(map(str, self.values))[:12]) or "none"
            raise self.problem(f"no key {' or '.join(map(repr, keys))}; its keys are {there}")
        return found

    def said(self, *more: str) -> tuple[str, Any]:
        """What the model said, with its key: under one of :data:`ANSWER_KEYS`, ``answer`` or ``more``."""
        return self.need(*ANSWER_KEYS, "answer", *more)

    def truth(self) -> tuple[str, Any]:
        """What is right, with its key.

        ``answer`` is that in rows of the benchmark, and in rows of a model that say elsewhere what the model said;
        alone in a row of a model it is what the model said.
        """
        own = self.reference or self.first(*ANSWER_KEYS) is not None
        return self.need("ground_truth", "gt_answer", "gt_content", *(("answer",) if own else ()))

    @property
    def scene(self) -> str:
        """Where the question is asked, or nothing."""
        found = self.first("scene", "scene_id", "scene_name", "video")
        return found[1] if found and isinstance(found[1], str) else ""

    def id(self, *more: str) -> str:
        """What names the question: the first of :data:`ID_KEYS`, else the values of ``more`` joined with ``|``."""
        found = self.first(*ID_KEYS)
        if found is None and more and all(self.first(key) for key in more):
            return "|".join(map(self.id_of, more))
        return self._name(*(found or self.need(*ID_KEYS)))

    def id_of(self, key: str) -> str:
        """What stands under ``key``, a text or a whole number, as a text."""
        return self._name(*self.need(key))

    def text(self, key: str, value: Any) -> str:
        """A text that can be scored: a string of valid Unicode and bounded length."""
        if not isinstance(value, str):
            raise self.problem(f"key {key!r} is {shown(value)}; a text is expected")
        if len(value) > MAX_CHARACTERS:
            raise self.problem(f"key {key!r} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are scored")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.problem(
                f"key {key!r} holds half a character (a lone surrogate), so it is no valid text"
            ) from None
        return value

    def texts(self, key: str, value: Any) -> tuple[str, ...]:
        """One text or a list of at least one."""
        if isinstance(value, str):
            return (self.text(key, value),)
        if not isinstance(value, list) or not value:
            raise self.problem(f"key {key!r} is {shown(value)}; a list of at least one text is expected")
        return tuple(self.text(f"{key}[{place}]", one) for place, one in enumerate(value))

    def number(self, key: str, value: Any) -> float:
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.problem(f"key {key!r} is {shown(value)}; a number is expected")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.problem(f"key {key!r} is {shown(value)}; a finite number is expected")
        return number

    def numbers(self, key: str, value: Any) -> list[float]:
        """A list of finite numbers."""
        if not isinstance(value, list):
            raise self.problem(f"key {key!r} is {shown(value)}; a list of numbers is expected")
        return [self.number(f"{key}[{place}]", one) for place, one in enumerate(value)]

    def box(self, key: str, value: Any) -> tuple[float, ...]:
        """A box as centre and full size, six numbers in metres."""
        numbers = self.numbers(key, value)
        if len(numbers) != 6:
            hint = " (nine: an oriented box, which these scores do not take)" if len(numbers) == 9 else ""
            raise self.problem(f"key {key!r} has {len(numbers)} numbers{hint}; a box has six: centre and full size")
        if any(abs(number) > MAX_METRES for number in numbers) or min(numbers[3:]) < 0:
            raise self.problem(f"key {key!r} is {shown(value)}: a size below 0 or more than {MAX_METRES:,.0f} metres")
        return tuple(numbers)

    def problem(self, what: str) -> RowProblem:
        """An error about this row."""
        return RowProblem(f"{self.where}: {what}.")

    def _name(self, key: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.problem(f"key {key!r} is {shown(value)}; the id of a question is a text or a whole number")
        return self.text(key, str(value))


def shown(value: Any) -> str:
    """A value in a message, cut to one short line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Deeply nested, or a whole number of more digits than Python writes.
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
