"""YAML of recipes: one loader with all other settings, and each mistake with its file and line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contracts.documents import DocumentError, decode, read_bytes
from ..contracts.yaml_text import Keys, dump_yaml, parse_yaml
from .problems import Place, Problem, RecipeError

__all__ = ["Document", "dump", "parse_value", "read_document"]

dump = dump_yaml


@dataclass(frozen=True)
class Document:
    """The settings of one file.

    Attributes:
        values: nested mappings, lists and plain values.
        lines: line of each setting, counted from 1.
        problems: what is wrong with the file itself, such as a key that is there twice.
    """

    values: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_document(path: Path) -> Document:
    """Read a recipe's file.

    Raises:
        RecipeError: it does not exist, cannot be read, is not YAML, or holds no mapping of settings.
    """
    try:
        found = parse_yaml(decode(read_bytes(path)))
    except FileNotFoundError:
        raise RecipeError(path, [Problem("the file does not exist", Place(path))]) from None
    except DocumentError as error:
        reason = error.reason if error.reason.startswith("cannot be read") else f"cannot be read: {error.reason}"
        raise RecipeError(path, [Problem(reason, Place(path, error.line))]) from None
    problems = tuple(Problem(each.message, Place(path, each.line), each.keys) for each in found.mistakes)
    if not isinstance(found.value, dict):
        raise RecipeError(path, [Problem("must be a mapping of settings, such as `host: ...`", Place(path, 1))])
    return Document(found.value, found.lines, problems)


def parse_value(text: str) -> Any:
    """One value as a recipe would have it: ``1e-4``, ``null``, ``[480, 832]``, ``{r: 8}``, text.

    Raises:
        ValueError: it is not YAML; the message says why.
    """
    try:
        found = parse_yaml(text)
    except DocumentError as error:
        raise ValueError(error.reason) from None
    if found.mistakes:
        raise ValueError("; ".join(each.message for each in found.mistakes))
    return found.value
