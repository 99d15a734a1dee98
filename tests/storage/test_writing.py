"""The atomic writer: the old file or the new one, whole, whatever happens; and nothing left over."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vega3d_plugin.storage.processes import machine, started, this_process, writer_is_alive
from vega3d_plugin.storage.writing import create_text, leftovers, sweep, write_atomically, write_json, write_text

WRITER = """
import sys, time
from pathlib import Path
from vega3d_plugin.storage.writing import write_atomically

def half(place):
    place.write_text("half")
    (place.parent / "a library's own").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), half)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_and_one_in_the_place_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "x.txt"
    write_text(path, "one\nü")
    assert path.read_bytes() == "one\nü".encode()
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert names(path.parent) == ["x.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o000])
def test_a_file_is_as_readable_as_its_neighbours(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        write_text(tmp_path / "new", "x")
        # Some writers replace the file by one that only its owner can read.
        write_atomically(tmp_path / "private", lambda place: (place.write_text("x"), place.chmod(0o600)))
        create_text(tmp_path / "claimed", "x")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_the_umask_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing it to read it would make another thread's files open to all for that moment."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    write_text(tmp_path / "x", "x")


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("no such encoder")])
@pytest.mark.parametrize("where", ["write", "rename"])
def test_what_fails_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "x"
    path.write_text("old")
    if where == "rename":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_atomically(path, fail if where == "write" else lambda place: place.write_text("new"))
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_killed_writer_leaves_the_old_file_and_what_the_next_one_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    # While it lives, its files are its own.
    assert sweep(tmp_path) == 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == ["x"]


def test_files_of_other_machines_are_swept_once_they_are_old(tmp_path: Path) -> None:
    theirs = tmp_path / ".x.~0123456789ab-1-1-00000000.tmp"
    theirs.mkdir()
    (theirs / "x").touch()
    assert list(leftovers(tmp_path)) == []
    long_ago = time.time() - 7200
    os.utime(theirs, (long_ago, long_ago))
    # It is being written to.
    assert list(leftovers(tmp_path)) == []
    os.utime(theirs / "x", (long_ago, long_ago))
    assert list(leftovers(tmp_path)) == [theirs]


def test_what_others_keep_there_is_not_swept(tmp_path: Path) -> None:
    kept = [".gitignore", ".cache", "x.tmp", ".x.json", ".vega3d_claim", ".~1-2-3-4.tmp", ".env.local"]
    for name in kept:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".tmpABCDEF").mkdir()
    os.utime(tmp_path / ".tmpABCDEF", (1, 1))
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path / "nowhere") == 0


def test_the_longest_name_a_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    write_text(path, "x")
    assert names(tmp_path) == [path.name]


def test_only_one_creates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    create_text(tmp_path / "a", "first")
    with pytest.raises(FileExistsError):
        create_text(tmp_path / "a", "second")
    monkeypatch.setattr(os, "link", refuse)
    create_text(tmp_path / "b", "first")
    with pytest.raises(FileExistsError):
        create_text(tmp_path / "b", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "first", "b": "first"}


def test_who_lives() -> None:
    assert writer_is_alive(this_process()) is True
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{machine()}-{process.pid}-{started(process.pid)}"
    assert writer_is_alive(name) is True
    # Another process that was given the same number.
    assert writer_is_alive(f"{machine()}-{process.pid}-1") is False
    process.kill()
    process.wait()
    assert writer_is_alive(name) is False
    assert writer_is_alive("0123456789ab-1-1") is None
    for damaged in ("", "x", f"{machine()}-x-y", f"{machine()}-1", f"{machine()}-1-", f"{machine()}--1-1"):
        assert writer_is_alive(damaged) is None
