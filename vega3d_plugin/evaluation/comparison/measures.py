"""What an answer scores, read off a line of a file of answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.choices import leading_letter, letter_of
from ..metrics.numbers import mean_relative_accuracy, number_within, plain_number

_TYPES = ("question_type", "type", "category", "task")
_MEDIA = ("image", "images", "video", "videos", "scene")


def same_answer(said: str, expected: str) -> bool:
    """Equal but for case, surrounding space and a final full stop."""
    return _plain(said) == _plain(expected)


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """By measure; a measure that does not fit the expected answer is not there, and a likelihood that is no number is
    NaN.
    """
    found: dict[str, float] = {}
    if "nll" in row:
        found["nll"] = math.nan if row["nll"] is None else float(row["nll"])
    expected, said = expected_of(row), str(row.get("prediction", ""))
    if not expected:
        return found
    found["exact"] = float(any(same_answer(said, one) for one in expected))
    if len(expected) == 1:
        found |= _choice(said, expected[0]) | _number(said, expected[0])
    return found


def expected_of(row: Mapping[str, Any]) -> list[str]:
    """The expected answers; empty where the row has none."""
    for key in ("answers", "ground_truth", "gt_response", "gt_answer", "gt_content"):
        value = _first(row, key)
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return value
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return [str(value)]
    return []


def type_of(row: Mapping[str, Any]) -> str | None:
    """The type of a question, where its row says one."""
    found = next((value for key in _TYPES if isinstance(value := _first(row, key), str) and value), None)
    return None if found == "all" else found


def group_of(row: Mapping[str, Any]) -> str:
    """Names the pictures of a row, or the row itself: what the bootstrap draws as one."""
    media = {key: row[key] for key in _MEDIA if row.get(key) is not None}
    return (
        json.dumps(media, sort_keys=True, default=str)
        if media
        else str(row["sample_id"]).rpartition("#")[0] or str(row["sample_id"])
    )


def _choice(said: str, expected: str) -> dict[str, float]:
    letter = letter_of(expected.strip().rstrip("."))
    return {} if letter is None else {"choice": float(leading_letter(said) == letter)}


def _number(said: str, expected: str) -> dict[str, float]:
    truth = plain_number(expected.strip().rstrip("."))
    if truth is None or not math.isfinite(truth) or truth <= 0:
        return {}
    number = number_within(said)
    if number is None:
        return {"MRA": 0.0}
    return {"MRA": mean_relative_accuracy(number, truth), "relative error": abs(number - truth) / truth}


def _first(row: Mapping[str, Any], key: str) -> Any:
    metadata = row.get("metadata")
    found = row.get(key)
    return metadata.get(key) if found is None and isinstance(metadata, Mapping) else found


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()


def kinds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The types of questions, in the order in which they come."""
    return list(dict.fromkeys(kind for row in rows if (kind := type_of(row)) is not None))
