"""Which process wrote something, and whether it still runs."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Names the running system: another after a reboot, the same in all containers on it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@cache
def machine() -> str:
    """Names the space of process numbers: the running system, and the container on it. 12 hex digits."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{boot_id()} {space}".encode()).hexdigest()[:12]


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; 0 where the system does not tell, None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        state, start = stat.rpartition(b")")[2].split()[:20][0::19]
        # A zombie has ended, though nobody has asked for its result yet.
        return None if state in (b"Z", b"X") else int(start)
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, ValueError):
        return 0
    if os.name != "posix":
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def this_process() -> str:
    """Names this process: ``machine-pid-start``. Not cached, for a fork is another."""
    pid = os.getpid()
    return f"{machine()}-{pid}-{started(pid) or 0}"


def writer_is_alive(name: str) -> bool | None:
    """Whether the process that :func:`this_process` named still runs; None when it is not of this machine."""
    there, _, numbers = name.partition("-")
    pid, _, start = numbers.partition("-")
    if there != machine() or not (pid.isdecimal() and start.isdecimal()):
        return None
    now = started(int(pid))
    return now is not None and (now == int(start) or 0 in (now, int(start)))
