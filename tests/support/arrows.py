"""Which module of the library imports which, read from the source; imports inside functions count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Arrows = Mapping[str, set[str]]


def arrows(root: Path) -> dict[str, set[str]]:
    """For each module below ``root`` (a package), by dotted name, the modules of the package that it imports."""
    modules = {_name(root, path): path for path in root.rglob("*.py")}
    return {name: set(_imported(name, path, modules)) - {name} for name, path in modules.items()}


def gathered(found: Arrows, place: dict[str, str]) -> dict[str, set[str]]:
    """The same arrows between places, such as folders; arrows within one are left out."""
    out: dict[str, set[str]] = {}
    for source, targets in found.items():
        reached = {place[target] for target in targets} - {place[source]}
        out.setdefault(place[source], set()).update(reached)
    return out


def circle(found: Arrows) -> list[str]:
    """Names along one circle of arrows, the first again at the end; empty when there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(found.get(name, ())):
            if ring := visit(target, [*path, name]):
                return ring
        done.add(name)
        return []

    return next((ring for name in sorted(found) if (ring := visit(name, []))), [])


def _name(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    top = name.partition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")
                source = ".".join([*above[: len(above) - node.level + 1], *([source] if source else [])])
            if source.partition(".")[0] == top:
                # A name may be a module of its own, or something in the package's `__init__`.
                yield from (f"{source}.{a.name}" if f"{source}.{a.name}" in modules else source for a in node.names)
