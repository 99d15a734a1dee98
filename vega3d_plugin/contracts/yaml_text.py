"""YAML as settings and recipes use it: safe, numbers as in YAML 1.2, the line of every setting, at bounded cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from .documents import MAX_DEPTH, DocumentError, parse_integer
from .printable import brief, printable

#: Where a setting stands: ``("prior", "tap")``.
Keys = tuple[str | int, ...]
#: Bytes and values of one document: what the parser reads in a second. The largest recipe has 5 kB.
MAX_BYTES, MAX_VALUES = 1 << 18, 10_000


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2's core schema does, and refuses what settings have no use for."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - PyYAML's own way

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            # Aliases of aliases grow without bound, and `extends` says what they would.
            raise _at(event, "anchors and aliases (`&`, `*`) are not read here; write the values out")
        self.depth, self.count = self.depth + 1, self.count + 1
        # A value counts as a level of its own.
        if self.depth > MAX_DEPTH + 1:
            raise _at(event, f"its values are nested deeper than {MAX_DEPTH}")
        if self.count > MAX_VALUES:
            raise _at(event, f"it has more than {MAX_VALUES:,} keys and values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# YAML 1.1, which PyYAML reads otherwise, takes 1e-4 for text, `no` for false and 010 for eight.
for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass(frozen=True)
class Mistake:
    """What cannot be read in a document: the message, the line from 1, and the setting."""

    message: str
    line: int
    keys: Keys = ()


@dataclass(frozen=True)
class Document:
    """The values of a document.

    Attributes:
        value: nested mappings, lists and plain values; None for an empty document.
        lines: line of each setting, counted from 1.
        mistakes: what is wrong with single settings, such as a key that is there twice; they are left out of ``value``.
    """

    value: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()


def parse_yaml(text: str) -> Document:
    """Plain values from YAML. Nothing is made by its tag, so no text can run code.

    Raises:
        DocumentError: not YAML, several documents, anchors and aliases, or more than :data:`MAX_BYTES`,
            :data:`MAX_VALUES` or :data:`~vega3d_plugin.contracts.documents.MAX_DEPTH`.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(f"it has more than {MAX_BYTES:,} characters")
    try:
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = f"cannot be read as YAML: {error.problem or error.context}"
        raise DocumentError(reason, None if mark is None else mark.line + 1) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError(f"cannot be read as YAML: {' '.join(str(error).split())}") from None
    if node is None:
        return Document(None)
    reader = _Reader()
    value = reader.value(node, ())
    return Document(value, reader.lines, tuple(reader.mistakes))


def _at(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _Reader:
    """Makes plain values of nodes."""

    def __init__(self) -> None:
        self.lines: dict[Keys, int] = {}
        self.mistakes: list[Mistake] = []

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
                    return parse_integer(text) if kind == "int" else float(_pointed(text))
                except ValueError as error:
                    message = str(error) if isinstance(error, DocumentError) else f"{brief(text)} is not a number"
                    self._wrong(message, node.start_mark.line + 1, keys)
                    return None
        return text if self._known(node, keys, "str") else None

    def _known(self, node: yaml.Node, keys: Keys, kind: str) -> bool:
        if node.tag == f"tag:yaml.org,2002:{kind}":
            return True
        self._wrong(f"cannot be read: the tag {brief(node.tag)} is not allowed here", node.start_mark.line + 1, keys)
        return False

    def _wrong(self, message: str, line: int, keys: Keys) -> None:
        self.mistakes.append(Mistake(message, line, keys))


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


def dump_yaml(values: Any) -> str:
    """YAML text that :func:`parse_yaml` and any other reader of YAML understand alike, and that is safe to print."""
    options: dict[str, Any] = {"sort_keys": False, "default_flow_style": False, "width": 100}
    text: str = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, **options)
    # YAML lets marks of direction stand; as escapes they are still what they were.
    return text if printable(text) == text else yaml.dump(values, Dumper=_Dumper, allow_unicode=False, **options)
