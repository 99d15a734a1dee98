"""Where a script's simulator begins an episode, so that the branch forgets what it saw in the one before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .importing import after_import
from .script import RunError
from .session import Session


@dataclass(frozen=True)
class Start:
    """A method that begins an episode.

    Attributes:
        module: dotted name.
        owner: of a class in it.
        method: of that class.
    """

    module: str
    owner: str
    method: str

    @classmethod
    def read(cls, text: str) -> Start:
        """``MODULE:CLASS.METHOD``.

        Raises:
            RunError: it is not written like this.
        """
        found = re.fullmatch(r"([\w.]+):(\w+)\.(\w+)", text)
        if found is None:
            raise RunError(f"--episode-start {text}: write MODULE:CLASS.METHOD, such as {KNOWN[0]}.")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{self.module}:{self.owner}.{self.method}"


#: Of simulators that scripts use: robosuite's, which LIBERO, RoboCasa and robomimic build on.
KNOWN = (Start("robosuite.environments.base", "MujocoEnv", "reset"),)


@contextmanager
def watched(session: Session, more: Sequence[Start] = ()) -> Iterator[None]:
    """Tell the session of every episode that begins while the block runs.

    Args:
        session: of this run, with its wraps open.
        more: beside those of :data:`KNOWN`; a place that is named must be there.

    Raises:
        RunError: a named place is not there, once its module has been imported.
    """
    with ExitStack() as waiting:
        for start in dict.fromkeys([*KNOWN, *more]):
            waiting.callback(after_import(start.module, _wrap(session, start, named=start in more)))
        yield


def _wrap(session: Session, start: Start, named: bool) -> Callable[[ModuleType], None]:
    def begin(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        session.begin_episode(start)
        return original(*args, **kwargs)

    def wrap(module: ModuleType) -> None:
        owner = getattr(module, start.owner, None)
        if owner is not None and start.method in vars(owner):
            session.wraps.add(owner, start.method, begin, "forgets earlier observations: an episode begins")
        elif named:
            raise RunError(
                f"--episode-start {start}: {start.module} has no class {start.owner} with a {start.method} of its own."
            )

    return wrap


def waiting_places(more: Sequence[Start] = ()) -> list[tuple[str, str]]:
    """Name and purpose, for ``--explain``."""
    why = "forgets earlier observations: an episode begins"
    return [(f"{start} (once imported)", why) for start in dict.fromkeys([*KNOWN, *more])]


__all__ = ["KNOWN", "Start", "waiting_places", "watched"]
