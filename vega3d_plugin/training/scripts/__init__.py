"""Run a host's own script with the branch in it: what ``vega3d run`` does."""

from .episodes import Start
from .job import make_session, run
from .script import Command, RunError, parse_command, script_traceback
from .session import Session, rank

__all__ = [
    "Command",
    "RunError",
    "Session",
    "Start",
    "make_session",
    "parse_command",
    "rank",
    "run",
    "script_traceback",
]
