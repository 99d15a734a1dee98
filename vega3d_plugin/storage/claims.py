"""One writer for a folder: a claim that nobody else gets while it is held, and that a dead process does not keep.

The claim is a file in the folder with a lock of the operating system on it (``flock``), which ends with the process
however that ends. Where file systems do not tell other machines of their locks (some of NFS, Lustre), the file's time
does: the holder touches it every half minute. Where there are no locks at all, the file's record of its process does.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contracts.errors import Vega3dError
from .processes import boot_id, this_process, writer_is_alive
from .writing import _temporary_folder, sweep

try:
    import fcntl
except ImportError:  # Windows has other locks, and few shared file systems.
    fcntl = None  # type: ignore[assignment]

CLAIM_FILE = ".vega3d_claim"
#: How often a holder touches its claim, and for how long a claim without a sign of life is respected, in seconds.
BEAT, PATIENCE = 30.0, 180.0
# For how long two that claim a folder at once without locks may be apart, in seconds.
_SETTLED = 0.5


class FolderClaim:
    """A claim that is held. Let go of it with :meth:`release`; it also ends with the process.

    Attributes:
        folder: what is claimed.
        taken_over: what was said of the claim that stood there, of a process that is dead; else empty.
    """

    def __init__(self, folder: Path, handle: int, made: list[Path], taken_over: str) -> None:
        self.folder, self.taken_over = folder, taken_over
        self._handle, self._made = handle, made
        self._owner = this_process()
        self._end = threading.Event()
        self._write()
        _held.add(self)
        threading.Thread(target=self._beat, name="vega3d-claim", daemon=True).start()

    @property
    def held(self) -> bool:
        """False once it is released, or in a process that was forked off the holder's."""
        return not self._end.is_set() and self._owner == this_process()

    def is_mine(self) -> bool:
        """Whether the file is still this claim: another machine takes it over where it sees no sign of life."""
        try:
            handle = os.open(self.folder / CLAIM_FILE, os.O_RDONLY)
        except OSError:
            return False
        try:
            return _read_handle(handle).get("process") == self._owner
        finally:
            os.close(handle)

    def release(self) -> None:
        """Let go, and remove the folder again where this made it and nothing was put there."""
        if not self.held:
            return
        self._end.set()
        _held.discard(self)
        with suppress(OSError):
            if self.is_mine():
                (self.folder / CLAIM_FILE).unlink()
        os.close(self._handle)
        _remove(self._made)

    def _write(self) -> None:
        record = {
            "process": self._owner,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot": boot_id(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        data = json.dumps(record).encode()
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, data)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OSError):
                os.utime(self.folder / CLAIM_FILE)


_held: weakref.WeakSet[FolderClaim] = weakref.WeakSet()


def _close_in_child() -> None:
    """A fork has the lock too, and would keep it for as long as it lives: workers may outlive their parent."""
    for claim in list(_held):
        with suppress(OSError):
            os.close(claim._handle)
        claim._end.set()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def claim_folder(folder: Path, error: type[Vega3dError], who: str, otherwise: str) -> FolderClaim:
    """Claim a folder, which is made where there is none.

    Args:
        folder: to be claimed.
        error: what to raise.
        who: what holds such claims, as in "another run".
        otherwise: what to do instead, for the end of the message.

    Raises:
        Vega3dError: of the given type: another process holds it (the message says which, and what to do), or the
            folder cannot be written to.
    """
    made: list[Path] = []
    try:
        made = _make(folder)
        for _ in range(20):
            claim = _attempt(folder, made, error, who, otherwise)
            if claim is not None:
                sweep(folder)
                return claim
            time.sleep(0.05)
        raise error(f"{folder} is being claimed by several processes at once. {otherwise}")
    except BaseException as problem:
        _remove(made)
        if isinstance(problem, OSError):
            raise error(f"{folder} cannot be written to: {problem}. {otherwise}") from problem
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns what had to be made, the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(made: list[Path]) -> None:
    """Remove folders that were made, where nothing is in them."""
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def _attempt(folder: Path, made: list[Path], error: type[Vega3dError], who: str, otherwise: str) -> FolderClaim | None:
    """One attempt; None when somebody else has just let go or taken over, so that it is to be tried again."""
    path = folder / CLAIM_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        # Whoever made the folder too has removed it again.
        folder.mkdir(parents=True, exist_ok=True)
        return None
    try:
        locked = _lock(handle)
        try:
            same = os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:
            same = False
        record = _read_handle(handle)
        if not same or (locked is False and not record):
            return None
        problem = _holder(record, locked, folder)
        if problem:
            raise error(f"{folder} is in use: {who} ({_describe(record)}) {problem}. {otherwise}")
        claim = FolderClaim(folder, os.dup(handle), made, _describe(record) if record else "")
    finally:
        os.close(handle)
    if locked is None:
        # Without locks whoever wrote last has it; the others find out in time.
        time.sleep(_SETTLED)
        if not claim.is_mine():
            claim.release()
            return None
    return claim


def _lock(handle: int) -> bool | None:
    """True: got it. False: another process holds it. None: there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holder(record: dict[str, Any], locked: bool | None, folder: Path) -> str:
    """What the holder of a claim does, as a message goes on; empty when nobody holds it."""
    if locked is False:
        return "writes there"
    if not record or (locked and record.get("boot") == boot_id()):
        return ""
    alive = writer_is_alive(str(record.get("process")))
    if alive is not None:
        return "writes there" if alive else ""
    silent = _silence(folder)
    if silent > PATIENCE:
        return ""
    return (
        f"on another machine gave a sign of life {silent:.0f} s ago. If it is dead, its claim ends "
        f"{PATIENCE - silent:.0f} s from now, or when you delete {folder / CLAIM_FILE}"
    )


def _silence(folder: Path) -> float:
    """Seconds since the claim was touched, by the clock of the file system."""
    last = (folder / CLAIM_FILE).stat().st_mtime
    now = time.time()
    with suppress(OSError), _temporary_folder(folder / "clock", folder) as place:
        now = place.stat().st_mtime
    return max(0.0, now - last)


def _read_handle(handle: int) -> dict[str, Any]:
    """A claim's record; empty when it is damaged, as when its writer was killed before the first byte."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        record = json.loads(os.read(handle, 1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(record: dict[str, Any]) -> str:
    return f"process {record.get('pid')!r:.20} on {record.get('host')!r:.80}, since {record.get('since')!r:.40}"
