"""One writer for a folder: while it lives, and not a moment longer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vega3d_plugin.contracts.errors import TrainError
from vega3d_plugin.storage import claims
from vega3d_plugin.storage.claims import CLAIM_FILE, FolderClaim, claim_folder

HOLDER = """
import sys, time
from pathlib import Path
from vega3d_plugin.contracts.errors import TrainError
from vega3d_plugin.storage.claims import claim_folder
claim = claim_folder(Path(sys.argv[1]), TrainError, "another run", "Take another folder.")
print("held", flush=True)
time.sleep(60)
"""


def claim(folder: Path) -> FolderClaim:
    return claim_folder(folder, TrainError, "another run", "Take another folder.")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_is_made_and_removed_again_where_nothing_was_put_there(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    held = claim(folder)
    assert held.held
    assert held.is_mine()
    assert os.listdir(folder) == [CLAIM_FILE]
    held.release()
    assert not (tmp_path / "a").exists()
    held = claim(folder)
    (folder / "checkpoint").touch()
    held.release()
    held.release()
    assert os.listdir(folder) == ["checkpoint"]
    assert not held.held


def test_in_use_by_another_process_and_by_this_one(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(TrainError) as told:
        claim(tmp_path)
    for part in (f"{tmp_path} is in use: another run (process {holder.pid} on", "since", "Take another folder."):
        assert part in str(told.value)
    held = claim(tmp_path / "other")
    with pytest.raises(TrainError, match=rf"process {os.getpid()} on"):
        claim(tmp_path / "other")
    held.release()
    claim(tmp_path / "other").release()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_keeps_nobody_out(tmp_path: Path, holder: subprocess.Popen[str], how: signal.Signals) -> None:
    holder.send_signal(how)
    holder.wait()
    assert (tmp_path / CLAIM_FILE).is_file()
    held = claim(tmp_path)
    assert f"process {holder.pid} on" in held.taken_over
    held.release()
    assert os.listdir(tmp_path) == []


#: A worker that is there, with what it inherited closed, before anything goes on.
FORKED = """
import os
ready, told = os.pipe()
if not os.fork():
    os.write(told, b"x")
    time.sleep(60)
os.read(ready, 1)
"""


def test_workers_that_outlive_their_parent_do_not_keep_its_claim(tmp_path: Path) -> None:
    """A forked data loader has the parent's lock in its hands; it is closed there."""
    script = HOLDER.replace('print("held"', f'{FORKED}\nprint("held"')
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        process.kill()
        process.wait()
        claim(tmp_path).release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def other_machine(folder: Path, age: float) -> None:
    record = {"process": "0123456789ab-7-7", "pid": 7, "host": "node7", "boot": "another", "since": "then"}
    (folder / CLAIM_FILE).write_text(json.dumps(record))
    os.utime(folder / CLAIM_FILE, (time.time() - age, time.time() - age))


def test_another_machine_is_believed_for_as_long_as_it_gives_signs_of_life(tmp_path: Path) -> None:
    other_machine(tmp_path, 40)
    with pytest.raises(TrainError) as told:
        claim(tmp_path)
    for part in ("process 7 on 'node7', since 'then'", "on another machine gave a sign of life 4", CLAIM_FILE):
        assert part in str(told.value)
    assert json.loads((tmp_path / CLAIM_FILE).read_text())["pid"] == 7
    # Being looked at is no sign of life.
    assert time.time() - (tmp_path / CLAIM_FILE).stat().st_mtime > 39
    other_machine(tmp_path, claims.PATIENCE + 5)
    held = claim(tmp_path)
    assert "node7" in held.taken_over
    held.release()


def test_a_holder_gives_signs_of_life_and_knows_when_it_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    held = claim(tmp_path)
    os.utime(tmp_path / CLAIM_FILE, (1, 1))
    until = time.monotonic() + 30
    while (tmp_path / CLAIM_FILE).stat().st_mtime < 2:
        assert time.monotonic() < until, "no sign of life"
        time.sleep(0.01)
    other_machine(tmp_path, 0)
    assert not held.is_mine()
    held.release()
    # What another holds is not removed.
    assert (tmp_path / CLAIM_FILE).is_file()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"pid": []}'])
def test_a_damaged_claim_of_nobody_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLAIM_FILE).write_bytes(content)
    os.utime(tmp_path / CLAIM_FILE, (1, 1))
    claim(tmp_path).release()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=r"cannot be written to.*Take another folder"):
        claim(tmp_path / "file" / "below")
    assert os.listdir(tmp_path) == ["file"]


def test_without_locks_the_record_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[str]
) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    monkeypatch.setattr(claims, "_SETTLED", 0.05)
    with pytest.raises(TrainError, match=f"process {holder.pid} on"):
        claim(tmp_path)
    holder.kill()
    holder.wait()
    held = claim(tmp_path)
    with pytest.raises(TrainError, match="is in use"):
        claim(tmp_path)
    held.release()


def attempt(folder: Path, start: Any, number: int, results: Any) -> None:
    start.wait()
    try:
        held = claim(folder)
    except TrainError as error:
        results.put((number, str(error)))
    else:
        results.put((number, ""))
        start.wait()
        held.release()
        return
    start.wait()


def test_of_many_that_claim_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for trial in range(8):
        folder = tmp_path / str(trial)
        start, results = context.Barrier(4), context.Queue()
        processes = [context.Process(target=attempt, args=(folder, start, n, results)) for n in range(4)]
        for process in processes:
            process.start()
        found = dict(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
        assert sorted(map(bool, found.values())) == [False, True, True, True], found
        # Made by one and won by another, the empty folder may stay; nothing in it does.
        assert not list(folder.glob("*"))
