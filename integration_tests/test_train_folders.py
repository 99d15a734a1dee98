"""Output folders of ``vega3d train``: one run each, and gone on from whole checkpoints alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.kills import every_kill

from vega3d_plugin.contracts.errors import TrainError, Vega3dWarning
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.storage.claims import CLAIM_FILE
from vega3d_plugin.training.job import Job, claim_output, make_job
from vega3d_plugin.training.manifest import (
    WRITING,
    check_whole,
    checkpoints,
    clear_unfinished,
    newest_whole,
    read_manifest,
)
from vega3d_plugin.training.trainer import _put_in_place
from vega3d_plugin.training.whole import defect

pytestmark = pytest.mark.once

QWEN = "qwen_vl/smoke"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    # Set by every run; put back after it.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def job(output: str | Path, *overrides: str, **options: Any) -> Job:
    return make_job(QWEN, [f"train.output_dir={output}", *overrides], **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with a checkpoint after every two."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", RandomWeightsWarning)
        job(folder).run()
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name} {k}": t for file in checkpoint.glob("*.safetensors") for k, t in load_file(file).items()}


# One run a folder


@pytest.mark.once
def test_two_runs_never_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told before anything is loaded, whether it begins or goes on; and the first goes its way."""
    first = job("out")
    with monkeypatch.context() as patched:
        patched.setattr("vega3d_plugin.training.job.prepare", lambda *_: pytest.fail("too late"))
        for options in ({}, {"resume": True}):
            with pytest.raises(
                TrainError, match=rf"out is in use: another run \(process {os.getpid()} on .*new folder"
            ):
                job("out", **options)
    assert os.listdir("out") == [CLAIM_FILE]
    first.run()
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-2", "checkpoint-4"]
    # Nothing is left that would keep anyone out.
    assert not [name for name in os.listdir("out") if name.startswith(".")]
    assert job("out", resume=True).checkpoint == Path("out/checkpoint-4")


def test_a_plan_takes_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim_output(Path("out"))
    assert job("out", keep_output=True).claim is None
    held.release()
    job("out", keep_output=True)
    assert not Path("out").exists()


def test_a_job_that_is_never_run_lets_go() -> None:
    def forget() -> None:
        made = job("out")
        assert made.claim is not None

    forget()
    import gc

    gc.collect()
    claim_output(Path("out")).release()
    assert not Path("out").exists()


def test_what_goes_wrong_before_training_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for overrides in (("data.files=none.json",), ("host.model=nowhere/at/all",), ('lora.target_modules=["qq"]',)):
        with pytest.raises(Exception, match=r"none\.json|nowhere|qq"):
            job("some/where/out", *overrides)
        assert os.listdir() == []


def test_what_goes_wrong_in_training_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = job("out")
    monkeypatch.setattr("vega3d_plugin.training.job.make_trainer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ready.run()
    monkeypatch.undo()
    claim_output(Path("out")).release()


def killed_while_it_holds(folder: Path) -> None:
    claim_output(folder)
    (folder / f"{WRITING}-12345678" / "checkpoint-2").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.once
def test_a_killed_run_leaves_nothing_that_keeps_anyone_out(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_while_it_holds, args=(tmp_path / "out",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(os.listdir("out")) == [CLAIM_FILE, f"{WRITING}-12345678"]
    job("out").run()
    assert not [name for name in os.listdir("out") if name.startswith(".")]


def test_each_run_writes_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    plain, seen = transformers.Trainer._save_rng_state, []

    def noted(self: Any, output_dir: str) -> None:
        seen.append(Path(output_dir).parent.name)
        plain(self, output_dir)

    monkeypatch.setattr(transformers.Trainer, "_save_rng_state", noted)
    job("one").run()
    job("two", "train.max_steps=2").run()
    assert len(seen) == 3
    assert seen[0] == seen[1] != seen[2]
    assert all(name.startswith(f"{WRITING}-") for name in seen)


def test_a_run_whose_folder_was_taken_over_writes_no_more() -> None:
    ready = job("out")
    record = {"process": "0123456789ab-7-7", "pid": 7, "host": "node7", "boot": "another", "since": "then"}
    (Path("out") / CLAIM_FILE).write_text(json.dumps(record))
    with pytest.raises(TrainError, match="has been taken over by another run"):
        ready.run()
    assert checkpoints(Path("out")) == []
    assert json.loads((Path("out") / CLAIM_FILE).read_text())["pid"] == 7


@pytest.mark.slow
@pytest.mark.long
def test_the_command_twice_at_once() -> None:
    """The real thing: two processes, the same command, at the same moment."""
    command = [sys.executable, "-m", "vega3d_plugin.train", QWEN, "train.output_dir=out"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate(timeout=300) for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 1], told
    loser = told[codes.index(1)][1]
    # The loser may come when the winner holds the folder, or when it is done.
    assert "is in use: another run" in loser or "holds another run" in loser
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-2", "checkpoint-4"]
    assert [defect(path) for path in checkpoints(Path("out"))] == ["", ""]


# Whole checkpoints


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
}
NEEDED = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]


def without_list(checkpoint: Path) -> None:
    """As versions before 0.1.0 wrote it."""
    manifest = read_manifest(checkpoint)
    (checkpoint / "vega3d_run.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "files"}))


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "older version's"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(
    out: Path, name: str, damage: Callable[[Path], object], listed: bool
) -> None:
    if not listed:
        for checkpoint in checkpoints(out):
            without_list(checkpoint)
    assert newest_whole(out) == (out / "checkpoint-4", [])
    damage(out / "checkpoint-4" / name)
    found, (problem,) = newest_whole(out)
    assert found == out / "checkpoint-2"
    assert f"{out / 'checkpoint-4'} is damaged: " in problem
    assert name in problem or "weights" in problem
    with pytest.raises(TrainError, match=r"checkpoint-4 is damaged: .*Resume from .*checkpoint-2\."):
        check_whole(out / "checkpoint-4")
    damage(out / "checkpoint-2" / name)
    with pytest.raises(TrainError, match=r"No checkpoint in .* is complete:\n.*checkpoint-4 .*\n.*checkpoint-2 "):
        newest_whole(out)
    with pytest.raises(TrainError, match="No other checkpoint beside it is complete"):
        check_whole(out / "checkpoint-4")


def test_files_that_trainer_writes_beside_are_looked_at_too(out: Path) -> None:
    (out / "checkpoint-4" / "tokenizer_config.json").write_text("cut")
    assert "tokenizer_config.json has 3 bytes, it was written with" in newest_whole(out)[1][0]
    # Somebody's own file does no harm.
    shutil.rmtree(out / "checkpoint-4")
    (out / "checkpoint-2" / "notes.txt").write_text("mine")
    assert newest_whole(out) == (out / "checkpoint-2", [])


def test_resume_says_so_and_comes_to_the_same_end(out: Path, finished: Path) -> None:
    (out / "checkpoint-4" / "scheduler.pt").unlink()
    with pytest.warns(Vega3dWarning, match=r"checkpoint-4 is damaged: scheduler\.pt is missing\. The run resumes from"):
        ready = job(out, resume=True)
    assert ready.checkpoint == out / "checkpoint-2"
    assert ready.run() == out / "checkpoint-4"
    there, here = weights(finished / "checkpoint-4"), weights(out / "checkpoint-4")
    assert there.keys() == here.keys()
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())
    assert newest_whole(out) == (out / "checkpoint-4", [])


def test_a_checkpoint_that_is_named_is_refused_where_it_is_damaged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(out / "checkpoint-2" / "optimizer.pt")
    monkeypatch.setattr("vega3d_plugin.training.job.prepare", lambda *_: pytest.fail("too late"))
    with pytest.raises(TrainError, match=r"checkpoint-2 is damaged: optimizer\.pt .*Resume from .*checkpoint-4"):
        job(out, resume_from=out / "checkpoint-2")


def content(value: Any) -> Any:
    """What was saved, in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.tolist())
    if isinstance(value, dict):
        return {key: content(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [content(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
def test_a_flipped_bit_is_noticed_or_does_not_matter(out: Path, name: str) -> None:
    """``torch.load`` and safetensors read on over it. Some bytes of a zip file mean nothing, such as the time."""
    path = out / "checkpoint-4" / name
    data = path.read_bytes()
    before = None if path.suffix == ".safetensors" else content(torch.load(path, weights_only=False))
    noticed = 0
    for place in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        found, problems = newest_whole(out)
        if found == out / "checkpoint-2":
            assert name in problems[0]
            noticed += 1
            continue
        assert before is not None, place
        try:
            after = content(torch.load(path, weights_only=False))
        except Exception:
            # Told by the trainer, see below.
            continue
        assert after == before, place
    assert noticed > 10


def test_what_no_check_has_seen_ends_in_an_error_that_names_the_checkpoint(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(out / "checkpoint-4")
    ready = job(out, resume=True)
    cut(out / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(TrainError, match=r"checkpoint-2 cannot be resumed from: its optimiser.*--resume-from"):
        ready.run()


# Kills while a checkpoint is put in its place


def test_a_kill_between_two_renames_loses_no_checkpoint(out: Path) -> None:
    """Over one of the same step, as when a run goes on from an earlier one."""
    original = out / "checkpoint-4"
    kept = Path(shutil.copytree(original, out.parent / "kept"))

    def place() -> None:
        _put_in_place(out / f"{WRITING}-1" / "checkpoint-4", original)

    def prepare() -> None:
        shutil.rmtree(out / f"{WRITING}-1", ignore_errors=True)
        shutil.copytree(kept, out / f"{WRITING}-1" / "checkpoint-4")

    prepare()
    states = []
    for _ in every_kill(place):
        states.append(original.is_dir())
        clear_unfinished(out)
        assert not list(out.glob(f"{WRITING}*"))
        assert newest_whole(out) == (original, [])
        prepare()
    assert states == [True, False]


def test_half_a_checkpoint_is_never_put_in_place(out: Path) -> None:
    shutil.rmtree(out / "checkpoint-4")
    half = Path(shutil.copytree(out / "checkpoint-2", out / f"{WRITING}-1" / "checkpoint-6"))
    (half / "optimizer.pt").unlink()
    clear_unfinished(out)
    assert [path.name for path in checkpoints(out)] == ["checkpoint-2"]
    assert not list(out.glob(f"{WRITING}*"))


def test_a_manifest_is_written_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.training.manifest import write_manifest

    before = (out / "vega3d_run.json").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        write_manifest(out, {"format": 1})
    assert (out / "vega3d_run.json").read_bytes() == before
