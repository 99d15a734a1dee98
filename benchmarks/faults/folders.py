"""Folders under attack: runs, saved branches, feature stores and checkpoints that are killed, raced for and damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import vega3d
from vega3d_plugin.checkpoints import branch_files
from vega3d_plugin.checkpoints.branch_files import read_branch, write_branch
from vega3d_plugin.checkpoints.reading import holds_branch, read_saved
from vega3d_plugin.contracts.errors import TrainError, Vega3dError
from vega3d_plugin.storage.claims import claim_folder
from vega3d_plugin.storage.record import encode_record
from vega3d_plugin.storage.writing import leftovers
from vega3d_plugin.training.manifest import newest_whole, seal_checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.kills import killed_at
from support.saved_branches import record, tensors

FORK = multiprocessing.get_context("fork")
KEY = "ab" * 16


@dataclass
class Row:
    """What came of one attack."""

    attack: str
    trials: int = 0
    wrong: int = 0
    raw: int = 0
    leftovers: int = 0


#: One trial in a folder of its own: right or wrong, and how many files were left over.
Trial = Callable[[Path, random.Random], tuple[bool, int]]


def run(seconds: float) -> list[dict[str, Any]]:
    """All attacks, for about so many seconds together."""
    share = seconds / len(ATTACKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [asdict(attacked(name, trial, share)) for name, trial in ATTACKS.items()]


def attacked(name: str, trial: Trial, seconds: float) -> Row:
    row, rng, until = Row(name), random.Random(0), time.monotonic() + seconds
    while time.monotonic() < until or not row.trials:
        row.trials += 1
        with tempfile.TemporaryDirectory(prefix="vega3d-faults-") as folder:
            try:
                right, left = trial(Path(folder), rng)
                row.wrong += not right
                row.leftovers += left
            except Vega3dError:
                # Told, and typed.
                pass
            except Exception as error:
                row.raw += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return row


def in_processes(count: int, work: Callable[[int], str], *, kill_after: float | None = None) -> list[str | None]:
    """What ``work`` returns in each of several processes that begin at one moment; None of those that were killed."""
    start, results = FORK.Barrier(count), FORK.Queue()

    def one(number: int) -> None:
        start.wait()
        try:
            results.put((number, work(number)))
        except BaseException as error:
            results.put((number, f"{type(error).__name__}: {error}"))

    processes = [FORK.Process(target=one, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
    found: dict[int, str] = {}
    while len(found) < count and (any(p.is_alive() for p in processes) or not results.empty()):
        if not results.empty():
            number, value = results.get()
            found[number] = value
        time.sleep(0.001)
    for process in processes:
        process.join()
    return [found.get(number) for number in range(count)]


# Runs


def claimed_at_once(folder: Path, rng: random.Random) -> tuple[bool, int]:
    target = folder / "out"
    done = FORK.Barrier(4)

    def work(_: int) -> str:
        try:
            held = claim_folder(target, TrainError, "another run", "Take another folder.")
        except TrainError:
            done.wait()
            return "refused"
        done.wait()
        held.release()
        return "held"

    found = in_processes(4, work)
    return sorted(map(str, found)) == ["held", "refused", "refused", "refused"], len(list(target.glob("*")))


def claimed_after_a_kill(folder: Path, rng: random.Random) -> tuple[bool, int]:
    def work() -> None:
        claim_folder(folder / "out", TrainError, "another run", "Take another folder.").release()

    killed_at(work, rng.randrange(30))
    work()
    return True, len(list(folder.glob("out/.*")))


# Saved branches


def save(folder: Path, timestep: int) -> None:
    write_branch(folder, record(timestep), tensors(timestep))


def is_one_branch(folder: Path) -> bool:
    saved = read_branch(folder)
    timestep = saved.record["settings"]["prior"]["timestep"]
    same = all(torch.equal(saved.tensors[name], tensor) for name, tensor in tensors(timestep).items())
    return same and saved.record == record(timestep)


@contextmanager
def impatient() -> Iterator[None]:
    """A save that was interrupted is not waited for."""
    before, branch_files._PATIENCE = branch_files._PATIENCE, 0.0
    try:
        yield
    finally:
        branch_files._PATIENCE = before


def saved_over_and_killed(folder: Path, rng: random.Random) -> tuple[bool, int]:
    save(folder, 300)
    killed_at(lambda: save(folder, 700), rng.randrange(60))
    with impatient():
        right = is_one_branch(folder)
    save(folder, 500)
    return right and is_one_branch(folder), len(list(leftovers(folder))) + len(list(folder.iterdir())) - 3


def saved_over_and_killed_by_the_clock(folder: Path, rng: random.Random) -> tuple[bool, int]:
    save(folder, 300)

    def work(number: int) -> str:
        while True:
            save(folder, (500, 700)[number])

    in_processes(2, work, kill_after=rng.uniform(0.005, 0.1))
    with impatient():
        right = is_one_branch(folder)
    save(folder, 300)
    return right and is_one_branch(folder), len(list(folder.iterdir())) - 3


def read_during_saves(folder: Path, rng: random.Random) -> tuple[bool, int]:
    save(folder, 300)
    until = time.monotonic() + 1.0

    def work(number: int) -> str:
        right = True
        while time.monotonic() < until:
            if number:
                save(folder, rng.choice([300, 700]))
            else:
                right = right and is_one_branch(folder)
        return "right" if right else "wrong"

    found = in_processes(3, work)
    return found == ["right"] * 3 and is_one_branch(folder), len(list(folder.iterdir())) - 3


def branch_with_a_flipped_bit(folder: Path, rng: random.Random) -> tuple[bool, int]:
    save(folder, 300)
    flip(folder / rng.choice(["vega3d.safetensors", "vega3d_config.json"]), rng)
    with impatient():
        return not holds_branch(folder) or is_one_branch(folder), 0


def two_branches_in_a_folder(folder: Path, rng: random.Random) -> tuple[bool, int]:
    save(folder, 300)
    other = rng.choice([300, 700])
    kept = {**tensors(other), "record": encode_record(record(other))}
    name = rng.choice(["model.safetensors", "adapter_model.safetensors"])
    save_file({f"model.visual.vega3d.{key}": tensor for key, tensor in kept.items()}, folder / name)
    read_saved(folder)
    # Read without an error, it must have been the same one twice.
    return other == 300, 0


# Stores


class Plain(vega3d.Prior):
    """A few numbers of each frame."""

    feature_dim = 3

    def __init__(self, fingerprint: str = "plain") -> None:
        self.fingerprint = fingerprint

    def __call__(self, frames: Tensor) -> Tensor:
        return frames[:, :, ::4, ::4] + 1


def features(seed: int) -> Tensor:
    return torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(seed))


def bound(folder: Path, prior: vega3d.Prior) -> vega3d.FeatureStore:
    store = vega3d.FeatureStore(folder)
    store.bind(prior)
    return store


def store_claimed_at_once(folder: Path, rng: random.Random) -> tuple[bool, int]:
    def work(number: int) -> str:
        try:
            bound(folder / "store", Plain(f"f{number}"))
        except Vega3dError:
            return "refused"
        return f"f{number}"

    found = in_processes(3, work)
    owner = json.loads((folder / "store" / "store.json").read_text())["fingerprint"]
    return sorted(map(str, found)) == sorted([owner, "refused", "refused"]), len(list(folder.glob("store/*"))) - 1


def store_with_a_flipped_bit(folder: Path, rng: random.Random) -> tuple[bool, int]:
    bound(folder, Plain()).put(KEY, features(1))
    flip(folder / "ab" / f"{KEY}.safetensors", rng)
    return served_right(folder), 0


def store_with_a_foreign_entry(folder: Path, rng: random.Random) -> tuple[bool, int]:
    bound(folder, Plain()).put(KEY, features(1))
    path, good = folder / "ab" / f"{KEY}.safetensors", features(1)
    changes: list[Callable[[], Tensor]] = [
        lambda: torch.cat([good, good]), lambda: good[:1], lambda: good[:, :2], lambda: good[..., :4], lambda: good[0],
        lambda: good * torch.nan, lambda: (good * 9).long(), lambda: good.double(), lambda: features(2),
        lambda: torch.zeros(()), lambda: torch.zeros(0, 3, 1, 1),
    ]  # fmt: skip
    path.unlink()
    save_file({rng.choice(["features", "features", "other"]): rng.choice(changes)().contiguous()}, path)
    return served_right(folder), 0


def served_right(folder: Path) -> bool:
    """What the store gives is what was put, or nothing, and then it is computed."""
    store = bound(folder, Plain())
    found = store.get(KEY)
    if found is None:
        store.put(KEY, features(1))
        found = bound(folder, Plain()).get(KEY)
    return found is not None and torch.equal(found, features(1))


def store_writer_killed(folder: Path, rng: random.Random) -> tuple[bool, int]:
    bound(folder, Plain())
    killed_at(lambda: bound(folder, Plain()).put(KEY, features(1)), rng.randrange(20))
    right = served_right(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return right, len(set(names) - {"store.json", f"ab/{KEY}.safetensors"}) + len(list(folder.glob(".*")))


def store_on_a_full_disk(folder: Path, rng: random.Random) -> tuple[bool, int]:
    bound(folder, Plain())

    def work(_: int) -> str:
        # No file may grow beyond so many bytes: the system's own way to refuse a write half-way.
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(700), resource.RLIM_INFINITY))
        store = bound(folder, Plain())
        store.put(KEY, features(1))
        found = store.get(KEY)
        return "right" if found is not None and torch.equal(found, features(1)) else "wrong"

    right = in_processes(1, work) == ["right"] and served_right(folder)
    return right, len(list(folder.glob(".*"))) + len(list(folder.glob("ab/.*")))


def store_owner_mutated(folder: Path, rng: random.Random) -> tuple[bool, int]:
    bound(folder, Plain()).put(KEY, features(1))
    path = folder / "store.json"
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    return served_right(folder), 0


# Checkpoints


def checkpoint_damaged(folder: Path, rng: random.Random) -> tuple[bool, int]:
    """The newer of two checkpoints loses a file or a part of one: the older is gone on from, or nothing is."""
    for step in (2, 4):
        place = folder / f"checkpoint-{step}"
        place.mkdir()
        state = {"state": {0: {"exp_avg": torch.full((500,), float(step))}}, "param_groups": []}
        torch.save(state, place / "optimizer.pt")
        torch.save({"last_epoch": step}, place / "scheduler.pt")
        torch.save({"cpu": torch.get_rng_state()}, place / "rng_state.pth")
        save_file({"weight": torch.full((300,), float(step))}, place / "adapter_model.safetensors")
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        seal_checkpoint(place, {"format": 1, "settings": {}}, step)
    path = rng.choice(sorted((folder / "checkpoint-4").iterdir()))
    whole = path.read_bytes()
    rng.choice([path.unlink, lambda: path.write_bytes(whole[: rng.randrange(len(whole))]), lambda: flip(path, rng)])()
    found, problems = newest_whole(folder)
    if found == folder / "checkpoint-2":
        return bool(problems), 0
    # Not noticed: then it must not matter.
    return path.suffix != ".safetensors" and same_content(path, whole), 0


def same_content(path: Path, whole: bytes) -> bool:
    if path.suffix not in (".pt", ".pth"):
        return path.suffix == ".json"
    other = path.with_name("whole")
    other.write_bytes(whole)
    try:
        return str(torch.load(path, weights_only=True)) == str(torch.load(other, weights_only=True))
    except Exception:
        # Read, it ends in an error, which the trainer tells.
        return True


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    # Another file: the old one may still be mapped into memory.
    path.unlink()
    path.write_bytes(data)


ATTACKS: dict[str, Trial] = {
    "one output folder claimed by 4 runs at once": claimed_at_once,
    "a run killed while it claims its folder, then another": claimed_after_a_kill,
    "a branch saved over another, killed at an operation on files": saved_over_and_killed,
    "two savers over one branch, killed by the clock": saved_over_and_killed_by_the_clock,
    "a branch read while two processes save over it": read_during_saves,
    "a saved branch with a flipped bit": branch_with_a_flipped_bit,
    "two branches in one folder": two_branches_in_a_folder,
    "one empty store claimed by 3 priors at once": store_claimed_at_once,
    "a store's entry with a flipped bit": store_with_a_flipped_bit,
    "a store's entry of another shape, dtype or value": store_with_a_foreign_entry,
    "a writer to a store killed at an operation on files": store_writer_killed,
    "a store on a full disk": store_on_a_full_disk,
    "store.json with changed bytes": store_owner_mutated,
    "a checkpoint with a file missing, cut or flipped": checkpoint_damaged,
}
