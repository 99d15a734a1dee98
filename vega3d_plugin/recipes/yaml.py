"""YAML as recipes use it: safe, with numbers as in YAML 1.2, and with the line of every setting."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .problems import Keys, Place, Problem, RecipeError


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2's core schema does, and refuses what a recipe has no use for."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - PyYAML's own way

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            # Aliases of aliases grow without bound, and `extends` says what they would.
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases (`&`, `*`) are not read in recipes; write the values out",
                problem_mark=event.start_mark,  # type: ignore[arg-type]
            )
        return super().compose_node(parent, index)


# YAML 1.1, which PyYAML reads otherwise, takes 1e-4 for text, `no` for false and 010 for eight.
for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)


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
    if not path.is_file():
        raise RecipeError(path, [Problem("the file does not exist", Place(path))])
    try:
        node = _compose(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(path, None if mark is None else mark.line + 1)
        raise RecipeError(path, [Problem(f"cannot be read as YAML: {error.problem or error}", place)]) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(path, [Problem(f"cannot be read: {error}", Place(path))]) from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(path, [Problem("must be a mapping of settings, such as `host: ...`", Place(path, 1))])
    reader = _Reader(path)
    values = reader.value(node, ())
    return Document(values, reader.lines, tuple(reader.problems))


def parse_value(text: str) -> Any:
    """One value as a recipe would have it: ``1e-4``, ``null``, ``[480, 832]``, ``{r: 8}``, text.

    Raises:
        ValueError: it is not YAML; the message says why.
    """
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"cannot be read as YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"cannot be read as YAML: {error}") from None
    reader = _Reader(Path())
    value = None if node is None else reader.value(node, ())
    if reader.problems:
        raise ValueError("; ".join(problem.message for problem in reader.problems))
    return value


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


class _Reader:
    """Makes plain values of nodes. Nothing is constructed by tag, so no file can run code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Keys, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            if self._known(node, keys, "seq"):
                return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
            return None
        return self._scalar(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not self._known(node, keys, "map"):
            return found
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong("a key must be a name", line, keys)
                continue
            # `null:` or `8:` are names too, where names are expected.
            key = str(key_node.value)
            path = (*keys, key)
            if key in found:
                self._wrong(f"is there twice, first in line {self.lines[path]}", line, path)
                continue
            self.lines[path] = line
            found[key] = self.value(value_node, path)
        return found

    def _scalar(self, node: yaml.Node, keys: Keys) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" | "float":
                try:
                    return _number(text) if kind == "int" else float(_pointed(text))
                except ValueError:
                    self._wrong(f"{text!r} is not a number", node.start_mark.line + 1, keys)
                    return None
        return text if self._known(node, keys, "str") else None

    def _known(self, node: yaml.Node, keys: Keys, kind: str) -> bool:
        if node.tag == f"tag:yaml.org,2002:{kind}":
            return True
        self._wrong(f"cannot be read: the tag {node.tag!r} is not allowed here", node.start_mark.line + 1, keys)
        return False

    def _wrong(self, message: str, line: int, keys: Keys) -> None:
        self.problems.append(Problem(message, Place(self.path, line), keys))


def _number(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _pointed(text: str) -> str:
    """``.inf`` and ``.nan`` as Python writes them."""
    return text.lower().replace(".inf", "inf").replace(".nan", "nan")


class _Dumper(yaml.SafeDumper):
    """Quotes text that this module, or a reader of YAML 1.1, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Values that are there twice are written twice."""
        return True


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    """Lists of plain values stand in one line: ``[480, 832]``."""
    return dumper.represent_sequence(
        "tag:yaml.org,2002:seq", values, flow_style=not any(isinstance(value, list | dict) for value in values)
    )


_Dumper.add_representer(list, _list)
for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _regexp, None if _first is None else [_first])


def dump(values: Any) -> str:
    """YAML text that :func:`read_document` and any other reader of YAML understand alike."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100, allow_unicode=True)
