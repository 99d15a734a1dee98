"""The shard function with units of no host: killed anywhere, shared among ranks, noted, and given to Ray."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kills import killed_at
from torch import Tensor

import vega3d
from vega3d import FeatureStore
from vega3d_plugin.contracts.errors import RowError, StoreError
from vega3d_plugin.features import store as store_module
from vega3d_plugin.features import upkeep
from vega3d_plugin.features.extraction.ranks import rank_and_world
from vega3d_plugin.features.extraction.shard import Done, extract_shard, share
from vega3d_plugin.features.store import dtype_key

BAD = 3


class Mean(vega3d.Prior):
    feature_dim, fingerprint = 3, "mean"

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(frames, 2)


class Numbers:
    """Units that hold a clip each, and some the clip of the unit before; the fourth cannot be used.

    Args:
        folder: of the store.
        count: of units.
        kill: a folder; the process that first decodes unit 5 is killed, and leaves a file there.
    """

    def __init__(self, folder: Path, count: int = 8, kill: Path | None = None) -> None:
        self.folder, self.count, self.kill = folder, count, kill
        self.looked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def key(self, unit: int) -> str:
        return f"unit {unit}"

    def label(self, unit: int) -> str:
        return f"row {unit}"

    def store(self) -> FeatureStore:
        return FeatureStore(self.folder, memory_bytes=0)

    def open(self) -> OpenedNumbers:
        return OpenedNumbers(self)


class OpenedNumbers:
    def __init__(self, units: Numbers) -> None:
        self.units, self.store, self.prior = units, units.store(), Mean()
        self.store.bind(self.prior)

    def clips(self, unit: int) -> list[vega3d.Clip]:
        self.units.looked.append(unit)
        if unit == 5 and self.units.kill is not None and not (self.units.kill / "killed").exists():
            (self.units.kill / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == BAD:
            raise RowError("no picture")
        grid = vega3d.TokenGrid(1, 1, 1)
        # Units 6 and 7 show the same.
        return [vega3d.Clip(torch.full((1, 3, 4, 4), min(unit, 6) / 255), grid)]

    def name(self, clip: vega3d.Clip) -> str:
        return dtype_key(clip.key, None)

    def keep(self, clip: vega3d.Clip) -> None:
        self.store.put(self.name(clip), self.prior(clip.frames))


def contents(folder: Path) -> dict[str, float]:
    store = FeatureStore(folder)
    return {name: float(store.get(name).mean()) for name in store.names()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("expected")
    extract_shard(Numbers(folder))
    found = contents(folder)
    assert sorted(round(value * 255) for value in found.values()) == [0, 1, 2, 4, 5, 6]
    return found


@pytest.mark.parametrize("shard_bytes", [0, 100, 1 << 20])
def test_each_clip_is_kept_once_and_bad_units_are_told(
    tmp_path: Path, expected: dict[str, float], shard_bytes: int
) -> None:
    told: list[Done] = []
    tally = extract_shard(Numbers(tmp_path), shard_bytes=shard_bytes, told=told.append)
    assert [done.unit for done in told] == [f"row {unit}" for unit in range(8)]
    assert (tally.units, tally.clips, tally.made) == (8, 6, 6)
    assert tally.bad == {"row 3": "no picture"}
    assert tally.bytes == 6 * 3 * 4 * 4
    assert contents(tmp_path) == expected
    about = upkeep.describe(upkeep.open_store(tmp_path))
    assert (about.loose, about.shards) == {0: (6, 0), 100: (0, 2), 1 << 20: (0, 1)}[shard_bytes]


def test_a_store_that_cannot_be_written_to_ends_the_run(
    tmp_path: Path, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that nobody keeps would be computed for nothing, and counted as written."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be (kept|written)"):
        extract_shard(Numbers(tmp_path / "file"))
    real, written = store_module.write_entry, []

    def full(*given: Any) -> None:
        written.append(given)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_entry", full)
        with pytest.raises(StoreError, match=r"No space left.*Make room on the disk, and run the same command again"):
            extract_shard(Numbers(tmp_path / "store"), shard_bytes=0)
    assert len(contents(tmp_path / "store")) == 3
    assert extract_shard(Numbers(tmp_path / "store"), shard_bytes=0).made == 3
    assert contents(tmp_path / "store") == expected


@pytest.mark.once
def test_killed_anywhere_it_goes_on(tmp_path: Path, expected: dict[str, float]) -> None:
    """Before its first operation on a file, its eighth, ...: what is there is whole, and the next run does the rest."""
    killed = 0
    for moment in range(0, 2000, 7):
        folder = tmp_path / f"{moment}"
        if not killed_at(partial(extract_shard, Numbers(folder), shard_bytes=100), moment):
            break
        killed += 1
        if (folder / "store.json").exists():
            assert upkeep.verify(upkeep.open_store(folder)) == {}
        extract_shard(Numbers(folder), shard_bytes=100)
        assert contents(folder) == expected
        assert upkeep.describe(upkeep.open_store(folder)).leftovers == 0
    assert 10 < killed < 280


@pytest.mark.parametrize("notes", ["kept", "gone", "damaged", "of other types"])
def test_what_is_there_is_not_even_decoded(tmp_path: Path, expected: dict[str, float], notes: str) -> None:
    extract_shard(Numbers(tmp_path))
    (path,) = (tmp_path / "extracted").iterdir()
    if notes == "gone":
        path.unlink()
    elif notes == "damaged":
        path.write_bytes(path.read_bytes()[:-3])
    elif notes == "of other types":
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), 3)))
    units = Numbers(tmp_path)
    tally = extract_shard(units)
    assert (tally.made, tally.clips) == (0, 6)
    # The bad one is looked at again: it may have been mended.
    assert units.looked == ([BAD] if notes == "kept" else list(range(8)))
    assert contents(tmp_path) == expected


def test_what_is_lost_is_computed_again(tmp_path: Path, expected: dict[str, float]) -> None:
    extract_shard(Numbers(tmp_path), shard_bytes=0)
    for path in sorted(tmp_path.glob("??/*.safetensors"))[:2]:
        path.unlink()
    assert extract_shard(Numbers(tmp_path)).made == 2
    assert contents(tmp_path) == expected


def test_ranks_share_all_units_and_wait_for_nobody(tmp_path: Path, expected: dict[str, float]) -> None:
    units = Numbers(tmp_path, 40)
    shares = [share(units, rank, 3) for rank in range(3)]
    assert sorted(unit for each in shares for unit in each) == list(range(40))
    assert all(shares)
    # The last rank first; one that never comes is made up for by the next run.
    for rank in (2, 0):
        extract_shard(Numbers(tmp_path), rank=rank, world=3)
    extract_shard(Numbers(tmp_path))
    assert contents(tmp_path) == expected
    with pytest.raises(StoreError, match="no rank 3 of 3"):
        share(units, 3, 3)


@pytest.mark.parametrize(("rank", "world"), [("x", "2"), ("2", "2"), ("-1", "1"), ("0", "0")])
def test_a_launcher_that_says_nonsense(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(StoreError, match="RANK < WORLD_SIZE"):
        rank_and_world()


def test_ranks_are_those_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rank_and_world() == (1, 3)


# Ray: `make test-ray` runs these with the real one.

HAS_RAY = importlib.util.find_spec("ray") is not None
with_real_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed; conftest.py says so at the end of a run")


def test_without_ray_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.features.extraction import with_ray

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(with_ray.importlib, "import_module", missing)
    with pytest.raises(StoreError, match=r"pip install 'vega3d-plugin\[ray\]'.*torchrun"):
        with_ray.extract_with_ray(Numbers(tmp_path))


def test_a_short_list_is_given_to_all_the_actors_that_it_keeps_busy() -> None:
    from vega3d_plugin.features.extraction import with_ray

    def strategy(*, min_size: int, max_size: int, initial_size: int = 1, max_tasks_in_flight_per_actor: int) -> int:
        return initial_size

    def older(*, min_size: int, max_size: int, max_tasks_in_flight_per_actor: int) -> tuple[int, int]:
        return min_size, max_size

    assert with_ray._pool(strategy, 4, 2 * with_ray.TOGETHER) == 2
    assert with_ray._pool(strategy, 4, 1) == 1
    assert with_ray._pool(strategy, 4, 1000) == 4
    assert with_ray._pool(older, 4, 1000) == (1, 4)


@pytest.fixture(scope="module")
def ray() -> Any:
    import ray

    # Workers find this module by its name.
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    yield ray
    ray.shutdown()


@with_real_ray
@pytest.mark.parametrize("shard_bytes", [0, 100])
def test_ray_fills_the_same_store(ray: Any, tmp_path: Path, expected: dict[str, float], shard_bytes: int) -> None:
    from vega3d_plugin.features.extraction.with_ray import extract_with_ray

    told: list[Done] = []
    tally = extract_with_ray(Numbers(tmp_path), actors=2, shard_bytes=shard_bytes, told=told.append)
    assert (tally.units, tally.clips) == (8, 6)
    assert tally.bad == {"row 3": "no picture"}
    assert contents(tmp_path) == expected
    assert upkeep.verify(upkeep.open_store(tmp_path)) == {}
    assert len(told) == 8
    again = extract_with_ray(Numbers(tmp_path), actors=2, shard_bytes=shard_bytes)
    assert (again.made, again.clips) == (0, 6)


@with_real_ray
def test_ray_makes_up_for_a_worker_that_is_killed(ray: Any, tmp_path: Path, expected: dict[str, float]) -> None:
    from vega3d_plugin.features.extraction.with_ray import extract_with_ray

    store = tmp_path / "store"
    tally = extract_with_ray(Numbers(store, kill=tmp_path), actors=1)
    assert (tmp_path / "killed").exists()
    assert (tally.units, tally.clips) == (8, 6)
    assert contents(store) == expected
    assert upkeep.verify(upkeep.open_store(store)) == {}


@with_real_ray
def test_a_fault_that_is_no_bad_row_ends_the_run(ray: Any, tmp_path: Path) -> None:
    from vega3d_plugin.features.extraction.with_ray import extract_with_ray

    class Broken(Numbers):
        def open(self) -> Any:
            raise StoreError("belongs to another prior")

    with pytest.raises(StoreError, match=r"(?s)Ray stopped after 0 of 8 units.*belongs to another prior"):
        extract_with_ray(Broken(tmp_path), actors=1)
