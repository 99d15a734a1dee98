"""What can go wrong when answers are scored."""

from __future__ import annotations

from ...contracts.errors import Vega3dError


class ScoreError(Vega3dError, ValueError):
    """Answers cannot be scored: a file, its rows or the question asked of them does not fit."""


class RowProblem(ScoreError):  # noqa: N818
    """One row cannot be used; the message names its file, line and key."""
