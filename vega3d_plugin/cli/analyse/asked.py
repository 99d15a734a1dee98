"""What the verbs of ``vega3d analyse`` share: priors and scenes as they are written, progress, and results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..output import err, out, yellow_warnings
from ..targets import OutputError, write

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...contracts.settings import PriorSettings
    from ...scenes.scene import Scene

Priors = Annotated[
    list[str], typer.Argument(metavar="PRIOR...", help="Names, see `vega3d ls priors`; NAME?key=value sets one.")
]
Contexts = Annotated[
    list[str] | None,
    typer.Option("--contexts", metavar="CONTEXT", help="frame, views, video; repeatable. Default: all it has."),
]
Store = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for features, to be used again.")]
Scenes = Annotated[
    list[str],
    typer.Option(
        "--scenes",
        metavar="SCENE",
        help="Scenes with depth and poses: folders, files, room:0..7; repeatable. See `vega3d scene`.",
    ),
]
Views = Annotated[int, typer.Option("--views", min=2, help="Views of each scene, spread evenly.")]
Rule = Annotated[str, typer.Option("--protocol", help="visible, released or probe3d.")]
Device = Annotated[str | None, typer.Option(help="Device; default: CUDA if there is any.")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of every prior, see `vega3d prior info`; repeatable."),
]
Seed = Annotated[int, typer.Option(help="Seed of the twin's weights, the noise and the shuffled views.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results; a run is resumed from it.")]

OUT = Path("analysis_out")
_NUMBERS = re.compile(r"(-?\d{1,6})(?:\.\.(-?\d{1,6})(?:\.\.(\d{1,6}))?)?")
_MOST = 10_000


def asked_priors(written: Sequence[str], change: Sequence[str] | None) -> list[tuple[str, PriorSettings]]:
    """Priors as users write them, ``NAME`` or ``NAME?key=value&key=value``, each with a name for its files.

    Raises:
        UnknownNameError, SettingsError, BadParameter: a name, setting or value that cannot be.
    """
    from ...contracts.settings import PriorSettings
    from ...contracts.tables import PRIORS
    from ...priors.resolving import resolve
    from ..prior.features import parse_changes

    asked = []
    for text in written:
        name, _, own = text.partition("?")
        PRIORS.get(name)
        changes = [*(part for part in own.split("&") if part), *(change or [])]
        values = {**parse_changes(changes), "name": name}
        settings = resolve(PriorSettings.parse(values, where=f"the settings of {text}"))
        asked.append((safe_name("_".join([name, *changes])), settings))
    return asked


def opened_scenes(addresses: Sequence[str]) -> list[Scene]:
    """All scenes that addresses stand for; warnings are shown."""
    from ...scenes.opening import open_scenes

    with yellow_warnings():
        return open_scenes(addresses)


def numbers(text: str, what: str) -> list[int]:
    """Whole numbers as users write lists of them: ``0,100,300``, ``10..20`` or ``0..1000..100``, ends included.

    Raises:
        BadParameter: anything else.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part.strip())
        if match is None:
            raise typer.BadParameter(f"{what} {text}: expected numbers such as 0,100,300 or 0..1000..100.")
        first = int(match[1])
        last, step = int(match[2] or first), int(match[3] or 1)
        if step < 1 or last < first or (last - first) // step > _MOST:
            raise typer.BadParameter(f"{what} {part}: count upwards, by at least 1, to at most {_MOST} numbers.")
        found += range(first, last + 1, step)
    return found


def check_folder(folder: Path) -> Path:
    """Make the folder for results.

    Raises:
        OutputError: it is a file, or cannot be made.
    """
    if folder.is_file():
        raise OutputError(f"{folder} is a file; --out is a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error}. Choose another --out.") from error
    return folder


def safe_name(text: str) -> str:
    """A text as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:120] or "prior"


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def write_result(stem: Path, result: Any, picture: Callable[[], Image]) -> list[Path]:
    """Write a result as ``.json``, its table as ``.txt`` and its picture as ``.png``; return the files."""
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".json", ".txt", ".png")]
    drawn = picture()
    text, table = result.to_json(), result.table()
    write(files[0], lambda path: path.write_text(text, encoding="utf-8"))
    write(files[1], lambda path: path.write_text(f"{table}\n", encoding="utf-8"))
    write(files[2], lambda path: drawn.save(path, format="PNG"))
    return files


def print_result(table: str, files: Sequence[Path]) -> None:
    """A table as it is, and where it was written."""
    # Lines are not wrapped: a table would fall apart.
    out.print(Text(table), soft_wrap=True)
    out.print()
    for file in files:
        out.print(Text(f"Wrote {file}"), soft_wrap=True)
