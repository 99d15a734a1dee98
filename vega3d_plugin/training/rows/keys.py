"""Keys of rows: which are read, which only say where a row is from, and which nothing here knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...contracts.errors import near_misses
from ...contracts.printable import brief

#: What becomes turns, pictures and marks.
READ = ("conversations", "messages", "prompt", "completion", "image", "images", "video", "videos", "scene", "spar_info")
#: What says where a row is from, and changes nothing.
NOTES = ("id", "data_source", "source", "dataset", "metadata", "tag", "question_type")
#: Names that are counted; the rest of a file whose keys are all different is one number.
_COUNTED = 100
_SHOWN = 10


class UnknownKeys:
    """Counts the keys of rows that have no effect."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.others = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count those of one row."""
        for key in row:
            if key in READ or key in NOTES:
                continue
            if key in self.counts or len(self.counts) < _COUNTED:
                self.counts[key] += 1
            else:
                self.others += 1

    def message(self, total: int) -> str | None:
        """What to tell, once, about ``total`` rows; None where every key is known."""
        if not self.counts:
            return None
        shown = [
            f"{brief(key)} in {count:,} of {total:,} rows{_meant(key)}"
            for key, count in self.counts.most_common(_SHOWN)
        ]
        # What is past the limit may hold a key twice.
        more = len(self.counts) - len(shown) + self.others
        rest = [f"and {more:,} more"] if more else []
        return (
            f"Keys of rows that have no effect: {'; '.join([*shown, *rest])}. "
            f"Known: {', '.join(READ)}; and, without effect on training, {', '.join(NOTES)}."
        )


def _meant(key: str) -> str:
    close = near_misses(key, READ).strip().removeprefix("Did").removesuffix("?")
    return f" (did{close}?)" if close else ""
