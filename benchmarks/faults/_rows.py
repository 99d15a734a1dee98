"""What came of an attack."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """Counts of one attack.

    Attributes:
        attack: what was done.
        trials: how often.
        wrong: plausible results that are not right, errors that name no file, and costs out of bounds.
        raw: exceptions that are none of this library's.
        leftovers: files that nobody clears away.
    """

    attack: str
    trials: int = 0
    wrong: int = 0
    raw: int = 0
    leftovers: int = 0
