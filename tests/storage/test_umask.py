"""Files are as readable as the umask says, which is never changed to be read: that would be for all threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vega3d_plugin.storage.writing import write_atomically

change = os.umask


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = change(value)
    try:
        yield
    finally:
        change(before)


def privately(path: Path) -> None:
    """As a library does that makes a file of its own and renames it."""
    path.unlink()
    path.touch(mode=0o600)


@pytest.mark.parametrize("value", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    monkeypatch.setattr(os, "umask", lambda new: pytest.fail("the umask was changed"))
    with umask(value):
        for number, write in enumerate((privately, lambda path: path.write_text("x"))):
            file = tmp_path / f"{number}.json"
            write_atomically(file, write)
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~value
