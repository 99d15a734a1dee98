"""Processes that are killed at a chosen moment, as ``kill -9``, a lost power line or a full memory do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

#: What Python tells its audit hooks of when files are opened, made, renamed or removed: the moments to be killed at.
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.truncate", "os.utime"}


def killed_at(action: Callable[[], object], moment: int) -> bool:
    """Run ``action`` in a fork that is killed before its ``moment``-th operation on a file.

    Returns:
        False where it came to its end first.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event in EVENTS:
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        try:
            sys.addaudithook(hook)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError("the action failed, see above")
    return os.WIFSIGNALED(status)


def every_kill(action: Callable[[], object], most: int = 200) -> Iterator[int]:
    """Kill ``action`` before its first operation on a file, its second, and so on until it comes to its end."""
    for moment in range(most):
        if not killed_at(action, moment):
            assert moment > 0
            return
        yield moment
    raise AssertionError(f"still not at its end after {most} operations")
