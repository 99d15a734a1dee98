"""The feature store: once computed, kept; never another prior's, never half a file."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vega3d
from vega3d import FeatureStore
from vega3d_plugin.contracts.errors import StoreError, Vega3dWarning
from vega3d_plugin.features.store import dtype_key
from vega3d_plugin.storage.processes import machine, started, this_process

KEY, OTHER = "ab" * 16, "cd" * 16


class Stub(vega3d.Prior):
    """Two numbers per quarter of the frame, and a count of calls."""

    feature_dim = 2

    def __init__(self, fingerprint: str = "f1", feature_dim: int = 2) -> None:
        self.fingerprint, self.feature_dim, self.calls = fingerprint, feature_dim, 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls += 1
        return frames[:, : self.feature_dim, ::8, ::8] + 1


def features(value: float = 1.0, size: int = 4) -> Tensor:
    """``size * 16`` bytes."""
    return torch.full((1, 4, 1, size), float(value))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store" if request.param == "folder" else None)


def test_what_was_put_is_found(store: FeatureStore) -> None:
    assert store.get(KEY) is None
    assert KEY not in store
    store.put(KEY, features(3))
    assert KEY in store
    assert torch.equal(store.get(KEY), features(3))
    assert store.get(OTHER) is None
    store.put(KEY, features(4))
    assert torch.equal(store.get(KEY), features(4))


def test_a_kept_map_is_a_copy_without_gradient(store: FeatureStore) -> None:
    original = torch.ones(1, 4, 2, 2, requires_grad=True) * 2
    store.put(KEY, original)
    with torch.no_grad():
        original.zero_()
    kept = store.get(KEY)
    assert not kept.requires_grad
    assert torch.equal(kept, torch.full((1, 4, 2, 2), 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_dtype_and_layout_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    strided = torch.randn(3, 5, 4, 6).to(dtype).transpose(0, 1)[:, :, ::2]
    FeatureStore(tmp_path).put(KEY, strided)
    found = FeatureStore(tmp_path).get(KEY)
    assert found.dtype == dtype
    assert torch.equal(found, strided)


def test_another_process_finds_the_files(tmp_path: Path) -> None:
    first = FeatureStore(tmp_path / "made" / "here")
    first.bind(Stub())
    first.put(KEY, features(3))
    assert files(first.folder) == [f"ab/{KEY}.safetensors", "store.json"]
    second = FeatureStore(str(tmp_path / "made" / "here"))
    second.bind(Stub())
    assert KEY in second
    assert torch.equal(second.get(KEY), features(3))


def test_memory_alone_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore()
    store.bind(Stub())
    store.put(KEY, features())
    assert files(tmp_path) == []
    assert FeatureStore().get(KEY) is None


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    store = FeatureStore(memory_bytes=3 * 64)
    for key in "abc":
        store.put(key, features())
    # Looking at it makes it young again.
    store.get("a")
    store.put("d", features())
    assert [key in store for key in "abcd"] == [True, False, True, True]
    store.put("e", features(size=8))
    assert [key in store for key in "abcde"] == [False, False, False, True, True]


def test_putting_one_key_again_takes_no_more_memory() -> None:
    store = FeatureStore(memory_bytes=3 * 64)
    for _ in range(10):
        store.put("a", features())
    store.put("b", features())
    store.put("c", features())
    assert [key in store for key in "abc"] == [True, True, True]


def test_one_map_larger_than_the_bound_is_kept_while_it_is_used() -> None:
    store = FeatureStore(memory_bytes=1)
    store.put("a", features())
    assert store.get("a") is not None
    store.put("b", features())
    assert "a" not in store


def test_what_left_the_memory_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, memory_bytes=2 * 64)
    for value, key in enumerate("abcd"):
        store.put(key, features(value))
    assert sorted(store._recent) == ["c", "d"]
    for value, key in enumerate("abcd"):
        assert torch.equal(store.get(key), features(value))
    assert sorted(store._recent) == ["c", "d"]
    # And a file is not read again while its features are at hand.
    monkeypatch.setattr("vega3d_plugin.features.store.read_entry", lambda *_, **__: pytest.fail("read again"))
    store.get("d")


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (Stub("f2"), ["fingerprint: store 'f1', prior 'f2'"]),
        (Stub("f1", 3), ["feature_dim: store 2, prior 3"]),
        (Stub("f2", 3), ["fingerprint: store 'f1', prior 'f2'", "feature_dim: store 2, prior 3"]),
    ],
)
def test_a_store_of_another_prior_is_refused(tmp_path: Path, in_folder: bool, other: Stub, parts: list[str]) -> None:
    store = FeatureStore(tmp_path if in_folder else None)
    store.bind(Stub())
    store.bind(Stub())
    for candidate in [store, FeatureStore(tmp_path)] if in_folder else [store]:
        with pytest.raises(StoreError) as caught:
            candidate.bind(other)
        assert all(part in str(caught.value) for part in parts), caught.value
        assert (str(tmp_path) if in_folder else "in memory") in str(caught.value)
    # The refusal changes nothing.
    store.bind(Stub())


def test_a_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    FeatureStore(tmp_path).bind(vega3d.load_prior("tiny-wan", timestep=300))
    with pytest.raises(StoreError, match=r"fingerprint: store '[0-9a-f]{32}', prior '[0-9a-f]{32}'"):
        FeatureStore(tmp_path).bind(vega3d.load_prior("tiny-wan", timestep=200))
    FeatureStore(tmp_path).bind(vega3d.load_prior("tiny-wan", timestep=300, chunk_frames=1, dtype="bfloat16"))


def test_compute_dtypes_share_a_store_but_no_features() -> None:
    assert dtype_key(KEY, None) == dtype_key(KEY, torch.float32) == KEY
    assert dtype_key(KEY, torch.bfloat16) == f"{KEY}-bfloat16"
    assert dtype_key(KEY, torch.float16) == f"{KEY}-float16"


def flip(path: Path) -> None:
    """One bit of the features, which are the end of the file."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def again(path: Path, change: Callable[[Tensor], Tensor], **record: str) -> None:
    """The entry with other features, and with its record or none."""
    with safe_open(path, framework="pt") as handle:
        said, tensor = handle.metadata(), handle.get_tensor("features").clone()
    path.unlink()
    save_file({"features": change(tensor).contiguous()}, path, {**said, **record} if record else None)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no safetensors at all, but long enough for a header"),
    "another tensor": lambda path: save_file({"other": torch.zeros(1)}, path),
    "a flipped bit": flip,
    "without its record": lambda path: again(path, lambda t: t),
    "more steps": lambda path: again(path, lambda t: torch.cat([t, t])),
    "another size": lambda path: again(path, lambda t: t[..., :2]),
    "other channels": lambda path: again(path, lambda t: t[:, :1]),
    "another rank": lambda path: again(path, lambda t: t[0]),
    "whole numbers": lambda path: again(path, lambda t: t.long()),
    "NaN": lambda path: again(path, lambda t: t * torch.nan),
    "other features, its record": lambda path: again(path, lambda t: t + 1, format="pt"),
    "another clip's": lambda path: again(path, lambda t: t, key="ef" * 16),
    "another dtype's": lambda path: again(path, lambda t: t.double(), format="pt"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_told_once_and_replaced(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """In a branch: the answer is what it was, whatever lies in the file."""
    tokens = torch.randn(12, 8)
    expected = branch_of(Stub(), FeatureStore(tmp_path))(tokens, clips())
    paths = sorted(tmp_path.glob("*/*.safetensors"))
    before = [load_file(path)["features"].clone() for path in paths]
    for path in paths[:2]:
        damage(path)
    prior = Stub()
    with pytest.warns(Vega3dWarning) as told:
        assert torch.equal(branch_of(prior, bound(tmp_path, prior))(tokens, clips()), expected)
    assert len(told) == 1
    message = str(told[0].message)
    assert any(f"{path} is damaged: " in message for path in paths[:2])
    assert "computed again and replaced" in message
    assert prior.calls == 2
    # Written anew, as it was.
    assert all(torch.equal(load_file(path)["features"], tensor) for path, tensor in zip(paths, before, strict=True))
    later = Stub()
    assert torch.equal(branch_of(later, bound(tmp_path, later))(tokens, clips()), expected)
    assert later.calls == 0


def bound(folder: Path, prior: vega3d.Prior) -> FeatureStore:
    store = FeatureStore(folder)
    store.bind(prior)
    return store


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t[:, :1], "it has 1 channels"),
        (lambda t: t[0], "its shape is"),
        (lambda t: t.long(), "its dtype is torch.int64"),
        (lambda t: t * torch.nan, "NaN or infinity"),
    ],
)
def test_an_entry_of_an_older_version_must_be_a_feature_map(
    tmp_path: Path, change: Callable[[Tensor], Tensor], problem: str
) -> None:
    """Such entries carry no record, so what can be seen of them is looked at."""
    bound(tmp_path, Stub())
    owner = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({k: v for k, v in owner.items() if k != "entries"}))
    path = tmp_path / "ab" / f"{KEY}.safetensors"
    path.parent.mkdir()
    good = torch.rand(1, 2, 3, 4)
    save_file({"features": good}, path)
    assert torch.equal(bound(tmp_path, Stub()).get(KEY), good)
    path.unlink()
    save_file({"features": change(good).contiguous()}, path)
    with pytest.warns(Vega3dWarning, match=problem):
        assert bound(tmp_path, Stub()).get(KEY) is None


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.zeros(1, 2, 3, 4).long(), torch.full((1, 2, 3, 4), torch.nan)]
)
def test_what_is_no_feature_map_is_not_kept(tmp_path: Path, bad: Tensor) -> None:
    with pytest.raises(StoreError, match=rf"The features of clip {KEY} cannot be kept"):
        FeatureStore(tmp_path).put(KEY, bad)
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b"null", b'"f1"'])
def test_a_damaged_owner_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.json"):
        FeatureStore(tmp_path).bind(Stub())
    assert (tmp_path / "store.json").read_bytes() == content


def test_an_owner_that_lacks_a_key_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(StoreError, match="fingerprint: store None, prior 'f1'"):
        FeatureStore(tmp_path).bind(Stub())


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "content", [DEEP, b'{"format":' + b"9" * 5000 + b"}", b'{"a":' * 5000, b"{" + b" " * (1 << 17) + b"}"]
)
def test_a_hostile_owner_is_a_store_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.json") as caught:
        FeatureStore(tmp_path).bind(Stub())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["x" * 10_000, [1] * 1000, {"a": {}}, None, -1, 1e400, True, "\x1b[2J"])
@pytest.mark.parametrize("key", ["format", "prior", "feature_dim", "fingerprint", "entries"])
def test_an_owner_of_other_types_is_another_one(tmp_path: Path, key: str, value: object) -> None:
    prior = Stub()
    bound(tmp_path, prior)
    owner = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**owner, key: value}))
    if key == "entries":
        # Then as in a store of an older version.
        assert bound(tmp_path, prior).get(KEY) is None
        return
    if owner[key] == value:
        return
    with pytest.raises(StoreError, match=f"{key}: store") as caught:
        FeatureStore(tmp_path).bind(prior)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_an_owner_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "store.json").mkdir()
    with pytest.raises(StoreError, match=r"store\.json cannot be read"):
        FeatureStore(tmp_path).bind(Stub())


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("disk full")])
def test_what_cannot_be_written_is_used_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool, error: Exception
) -> None:
    store = FeatureStore(tmp_path)
    if present:
        store.put(KEY, features(1))
    before = files(tmp_path)

    def fill_the_disk(tensors: dict[str, Tensor], path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fill_the_disk)
    with pytest.warns(Vega3dWarning, match="Features are not kept in the feature store"):
        store.put(KEY, features(2))
    # Told once: another warning would be an error here.
    store.put(OTHER, features(3))
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert torch.equal(store.get(KEY), features(2))
    assert torch.equal(store.get(OTHER), features(3))
    found = FeatureStore(tmp_path).get(KEY)
    assert found is None if not present else torch.equal(found, features(1))


def test_a_rename_that_fails_is_no_end_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    tokens, prior = torch.randn(12, 8), Stub()
    expected = branch_of(Stub())(tokens, clips())
    store = bound(tmp_path, prior)
    monkeypatch.setattr(os, "replace", refuse)
    branch = branch_of(prior, store).train()
    with pytest.warns(Vega3dWarning, match="not kept") as told:
        out = branch(tokens, clips())
    out.sum().backward()
    assert len(told) == 1
    assert torch.equal(out, expected)
    # From memory, the next time.
    assert torch.equal(branch(tokens, clips()), expected)
    assert prior.calls == 3
    assert files(tmp_path) == ["store.json"]


def test_a_folder_that_cannot_be_claimed_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that may only be read: whose entries lie there cannot be told, so none is taken."""
    FeatureStore(tmp_path).put(KEY, features(9))

    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("vega3d_plugin.features.places.create_text", refuse)
    store = FeatureStore(tmp_path)
    with pytest.warns(Vega3dWarning, match="Read-only file system"):
        store.bind(Stub())
    assert store.get(KEY) is None
    store.put(KEY, features(1))
    assert torch.equal(store.get(KEY), features(1))
    assert torch.equal(FeatureStore(tmp_path).get(KEY), features(9))


def claim(folder: str, start: Any, number: int, results: Any) -> None:
    """One of several processes that claim an empty folder at the same moment, each for a prior of its own."""
    store = FeatureStore(folder)
    prior = Stub(f"f{number}")
    start.wait()
    try:
        store.bind(prior)
    except StoreError as error:
        results.put((number, str(error)))
    else:
        results.put((number, ""))


def test_of_many_that_claim_an_empty_folder_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for trial in range(8):
        folder = tmp_path / str(trial)
        start, results = context.Barrier(4), context.Queue()
        arguments = [(str(folder), start, number, results) for number in range(4)]
        processes = [context.Process(target=claim, args=each) for each in arguments]
        for process in processes:
            process.start()
        found = dict(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
        (winner,) = [number for number, problem in found.items() if not problem]
        assert all(f"store 'f{winner}'" in problem for number, problem in found.items() if number != winner)
        assert json.loads((folder / "store.json").read_text())["fingerprint"] == f"f{winner}"
        assert files(folder) == ["store.json"]


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    store = bound(tmp_path, Stub())
    store.put(KEY, features())
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    name = f"{machine()}-{gone.pid}-{started(gone.pid)}"
    gone.wait()
    half = tmp_path / f".x.~{name}-00000000.tmp"
    half.mkdir()
    (half / "x").write_bytes(b"half")
    mine = tmp_path / f".y.~{this_process()}-00000000.tmp"
    mine.mkdir()
    # As earlier versions and safetensors itself name theirs; nobody can be asked, but an hour is long.
    old = [tmp_path / "ab" / f".{KEY}.safetensors.a1b2c3d4", tmp_path / "ab" / ".tmpA1b2C3"]
    young = tmp_path / "ab" / f".{KEY}.safetensors.b1b2c3d4"
    for path in (*old, young):
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (1, 1))
    again = bound(tmp_path, Stub())
    assert not half.exists()
    assert mine.exists()
    again.put("ab" + "0" * 30, features())
    assert [path.exists() for path in (*old, young)] == [False, False, True]
    assert torch.equal(again.get(KEY), features())


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    FeatureStore(tmp_path).put(KEY, features())
    (tmp_path / "plain").touch()
    mode = (tmp_path / "ab" / f"{KEY}.safetensors").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


def test_copies_share_the_store(store: FeatureStore) -> None:
    twin = copy.deepcopy({"store": store})["store"]
    assert twin is store


def test_a_pickle_carries_the_folder_and_no_features(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, memory_bytes=1 << 20)
    store.bind(Stub())
    store.put(KEY, torch.randn(1, 4, 32, 32))
    data = pickle.dumps(store)
    assert len(data) < 1000
    twin = pickle.loads(data)
    assert (twin.folder, twin.memory_bytes) == (store.folder, store.memory_bytes)
    assert torch.equal(twin.get(KEY), store.get(KEY))
    with pytest.raises(StoreError):
        twin.bind(Stub("f2"))


def test_a_pickle_of_memory_is_empty() -> None:
    store = FeatureStore()
    store.put(KEY, features())
    assert pickle.loads(pickle.dumps(store)).get(KEY) is None


# In a branch


def branch_of(prior: vega3d.Prior, store: FeatureStore | None = None) -> vega3d.GenerativeBranch:
    statistics = vega3d.PixelStatistics((0.0,) * 3, (1.0,) * 3)
    seam = vega3d.Seam("visual", "", 8, 2, statistics, "family", reader=None)  # type: ignore[arg-type]
    settings = vega3d.BranchSettings(
        prior={"name": "tiny-wan"}, fusion={"init": "released"}, projector={"hidden_dim": 8}
    )
    torch.manual_seed(0)
    return vega3d.GenerativeBranch(settings, prior, seam, "test", store).eval()


def clips() -> list[vega3d.Clip]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(3, 2, 3, 32, 32, generator=generator)
    return [vega3d.Clip(f, vega3d.TokenGrid(1, 2, 2)) for f in frames]


def test_a_branch_asks_its_prior_once_per_clip(tmp_path: Path) -> None:
    tokens = torch.randn(12, 8)
    expected = branch_of(Stub())(tokens, clips())
    prior, store = Stub(), FeatureStore(tmp_path)
    branch = branch_of(prior, store)
    assert torch.equal(branch(tokens, clips()), expected)
    assert prior.calls == 3
    for _ in range(2):
        assert torch.equal(branch(tokens, clips()), expected)
    assert prior.calls == 3
    # The same pictures elsewhere, in another order, or from half precision are the same clips.
    reverse = [copy.copy(clip) for clip in reversed(clips())]
    branch(tokens, reverse)
    branch(tokens, [vega3d.Clip(clip.frames.double(), clip.grid) for clip in clips()])
    assert prior.calls == 3
    changed = clips()
    changed[1].frames[0, 0, 0, 0] += 0.5
    branch(tokens, changed)
    assert prior.calls == 4
    # Later, from the files alone.
    later = Stub()
    assert torch.equal(branch_of(later, FeatureStore(tmp_path))(tokens, clips()), expected)
    assert later.calls == 0


def test_without_a_store_it_asks_every_time() -> None:
    prior = Stub()
    branch = branch_of(prior)
    for _ in range(2):
        branch(torch.randn(12, 8), clips())
    assert prior.calls == 6


def test_features_kept_in_inference_mode_can_be_trained_with() -> None:
    store = FeatureStore()
    branch = branch_of(Stub(), store)
    tokens = torch.randn(12, 8)
    with torch.inference_mode():
        branch(tokens, clips())
    assert not any(kept.is_inference() for kept in store._recent.values())
    branch.train()(tokens, clips()).sum().backward()
    assert all(parameter.grad is not None for parameter in branch.parameters())


def test_a_map_in_the_store_is_not_changed_by_its_use() -> None:
    store = FeatureStore()
    branch = branch_of(Stub(), store)
    branch(torch.randn(12, 8), clips())
    before = {key: value.clone() for key, value in store._recent.items()}
    branch.train()(torch.randn(12, 8), clips()).sum().backward()
    assert all(torch.equal(store._recent[key], value) for key, value in before.items())


def test_a_file_holds_plain_features(tmp_path: Path) -> None:
    prior = Stub()
    branch_of(prior, FeatureStore(tmp_path))(torch.randn(12, 8), clips())
    paths = sorted(tmp_path.rglob("*.safetensors"))
    assert [path.stem for path in paths] == sorted(clip.key for clip in clips())
    clip = next(clip for clip in clips() if clip.key == paths[0].stem)
    assert torch.equal(load_file(paths[0])["features"], prior(clip.frames))
    assert os.listdir(paths[0].parent) == [paths[0].name]
