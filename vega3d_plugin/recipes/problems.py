"""What is wrong with a recipe: each mistake with its file, line and setting, all in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contracts.errors import SettingsError
from ..contracts.printable import LONGEST, one_line
from ..contracts.yaml_text import Keys

__all__ = ["Keys", "Place", "Problem", "RecipeError"]

#: Mistakes that a message lists; a file of nothing but mistakes has thousands.
SHOWN = 50


@dataclass(frozen=True)
class Place:
    """Where a setting was written.

    Attributes:
        path: the file; None for an override.
        line: counted from 1; None where it is the whole file.
        override: the override's text.
    """

    path: Path | None
    line: int | None = None
    override: str = ""

    def words(self, recipe: Path) -> str:
        """Where it is, for a reader of ``recipe``, which may extend the file that it was written in."""
        if self.path is None:
            text = one_line(self.override)
            return f"override `{text if len(text) <= LONGEST else text[:LONGEST] + '...'}`"
        line = "" if self.line is None else f"line {self.line}"
        return line if self.path == recipe else ", ".join(filter(None, (f"inherited from {self.path}", line)))


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        message: what is wrong, and what to do.
        place: where it was written; None where no line is to blame.
        keys: the setting.
    """

    message: str
    place: Place | None = None
    keys: Keys = ()

    @property
    def setting(self) -> str:
        """The setting as overrides name it: ``prior.tap``."""
        return ".".join(one_line(str(key)) for key in self.keys)

    def text(self, recipe: Path) -> str:
        """One line; the file is named where it is not ``recipe`` itself."""
        return ", ".join(filter(None, (self._where(recipe), self.setting))) + f": {self.message}"

    def _where(self, recipe: Path) -> str:
        if self.place is None:
            return "" if self.keys else "recipe"
        if self.place.path is None:
            return self.place.words(recipe)
        line = "" if self.place.line is None else f"line {self.place.line}"
        other = "" if self.place.path == recipe else str(self.place.path)
        return " ".join(filter(None, (other, line))) or ("" if self.keys else "file")


class SettingsClashError(ValueError):
    """Settings of one block that do not go together; raised by the block's own rules.

    Attributes:
        names: of these settings, in their block.
    """

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


class RecipeError(SettingsError):
    """A recipe is wrong; the message lists every mistake with its line.

    Attributes:
        path: the recipe.
        problems: the mistakes, in the order of the lines.
    """

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda p: _order(p, path)))
        count = len(self.problems)
        lines = "\n".join(f"  {problem.text(path)}" for problem in self.problems[:SHOWN])
        lines += f"\n  ... and {count - SHOWN} more" if count > SHOWN else ""
        super().__init__(f"{count} setting{'s are' if count > 1 else ' is'} wrong in {path}:\n{lines}")


def _order(problem: Problem, recipe: Path) -> tuple[int, str, int]:
    place = problem.place
    if place is None:
        return 3, "", 0
    if place.path is None:
        return 2, place.override, 0
    # The recipe's own lines first, then those of what it extends.
    return int(place.path != recipe), str(place.path), place.line or 0
