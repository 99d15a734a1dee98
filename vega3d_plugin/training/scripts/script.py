"""Run a script in this process as ``python`` would: ``sys.argv``, ``sys.path``, ``__main__``."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ...contracts.errors import Vega3dError


class RunError(Vega3dError):
    """A script cannot be run, or it would train or evaluate without the branch."""


@dataclass(frozen=True)
class Command:
    """A script or module, and its arguments.

    Attributes:
        target: path of the script, or name of the module.
        is_module: True for ``-m``.
        arguments: what follows it.
    """

    target: str
    is_module: bool
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(["-m", self.target] if self.is_module else [self.target])


def parse_command(words: Sequence[str]) -> Command:
    """Read ``SCRIPT ARGS`` or ``-m MODULE ARGS``.

    Raises:
        RunError: nothing to run, an option of python other than ``-m``, or no such file.
    """
    if not words:
        raise RunError("There is nothing to run. Give the script after `--`: vega3d run --recipe R -- SCRIPT ARGS.")
    first, *rest = words
    if first == "-m":
        if not rest:
            raise RunError("`-m` needs the name of a module: vega3d run --recipe R -- -m MODULE ARGS.")
        return Command(rest[0], True, tuple(rest[1:]))
    if first.startswith("-"):
        raise RunError(f"{first!r} is no script. After `--` comes SCRIPT ARGS or -m MODULE ARGS.")
    path = Path(first)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise RunError(f"{first} is a folder without a `__main__.py`. Give the script inside, or `-m MODULE`.")
    if not path.exists():
        raise RunError(f"The script {first} does not exist here ({Path.cwd()}).{_hint(first)}")
    return Command(first, False, tuple(rest))


def _hint(word: str) -> str:
    """What someone meant who gave a command for a script."""
    if re.fullmatch(r"python[\d.]*", Path(word).name):
        return " The script runs in this process: leave out `python`."
    if Path(word).suffix or "/" in word:
        return ""
    return " Put launchers such as torchrun in front: torchrun ... -m vega3d_plugin.run --recipe R -- SCRIPT ARGS."


def run_command(command: Command) -> None:
    """Run it as ``__main__``. What it raises comes through, ``SystemExit`` too.

    ``sys.argv`` and ``sys.path`` are as they were afterwards.
    """
    with _as_python_sets_them(command):
        if command.is_module:
            _check_module(command.target)
            runpy.run_module(command.target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command.target, run_name="__main__")


def _check_module(name: str) -> None:
    try:
        found = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        # Else the package itself lacks something, and its own traceback tells.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        found = False
    if not found:
        raise RunError(f"There is no module {name!r} to run with -m, here ({Path.cwd()}) or among what is installed.")


def script_traceback(error: BaseException, command: Command) -> str:
    """The traceback as ``python SCRIPT`` would print it: without the frames of this library and of runpy."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and not _is_main(frames):
        frames = frames.tb_next
    # A file that cannot be parsed has no frame of its own; the error says where it broke.
    shown = None if isinstance(error, SyntaxError) else error.__traceback__
    return "".join(traceback.format_exception(type(error), error, frames or shown))


def _is_main(frames: TracebackType) -> bool:
    names = frames.tb_frame.f_globals
    return names.get("__name__") == "__main__" and "runpy" not in frames.tb_frame.f_code.co_filename


@contextmanager
def _as_python_sets_them(command: Command) -> Iterator[None]:
    argv, path = list(sys.argv), list(sys.path)
    sys.argv[:] = [command.target, *command.arguments]
    # With -P or PYTHONSAFEPATH python puts no folder in front.
    if not sys.flags.safe_path:
        if sys.path and _is_launchers(sys.path[0], argv[0] if argv else ""):
            del sys.path[0]
        # runpy puts a folder or an archive in front itself.
        if command.is_module:
            sys.path.insert(0, str(Path.cwd()))
        elif Path(command.target).is_file() and not _is_archive(command.target):
            sys.path.insert(0, str(Path(command.target).resolve().parent))
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = argv, path


def _is_launchers(entry: str, launcher: str) -> bool:
    """Whether python put this entry in front for the command that is running: its folder, or with ``-m`` here."""
    return Path(entry or ".").resolve() in (Path(launcher).resolve().parent, Path.cwd())


def _is_archive(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)
