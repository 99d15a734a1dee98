"""A store at scale: entries many to a file, in a folder or behind a URL, written by many, looked after by commands."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import vega3d
from vega3d import FeatureStore
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.clips import TokenGrid
from vega3d_plugin.contracts.errors import StoreError, Vega3dWarning
from vega3d_plugin.features import shards, upkeep
from vega3d_plugin.features.cache import EntryCache
from vega3d_plugin.features.entries import EntryError
from vega3d_plugin.features.forms import FORMS, Form, entry_bytes
from vega3d_plugin.features.places import FolderPlace, RemotePlace, open_place

_numbers = itertools.count()


class Named(vega3d.Prior):
    feature_dim = 4

    def __init__(self, fingerprint: str = "f1") -> None:
        self.fingerprint = fingerprint

    def __call__(self, frames: Tensor) -> Tensor:
        raise AssertionError("not asked")


@pytest.fixture(params=["folder", "file", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        url = f"memory://stores/{next(_numbers)}"
        yield url
        files = fsspec.filesystem("memory")
        if files.exists(url):
            files.rm(url, recursive=True)
        return
    yield f"file://{tmp_path}/store" if request.param == "file" else str(tmp_path / "store")


def keys(count: int) -> list[str]:
    return [f"{number:02x}" * 16 for number in range(count)]


def features(key: str) -> Tensor:
    generator = torch.Generator().manual_seed(int(key[:2], 16))
    return torch.randn(2, 4, 3, 5, generator=generator)


def filled(source: str, count: int = 6, **options: object) -> FeatureStore:
    store = FeatureStore(source, memory_bytes=1, **options)  # type: ignore[arg-type]
    store.bind(Named())
    for key in keys(count):
        store.put(key, features(key))
    return store


def anew(source: str, **options: object) -> FeatureStore:
    """As another process would have it, and with nothing on this machine's disk."""
    store = FeatureStore(source, memory_bytes=1, cache_bytes=0, **options)  # type: ignore[arg-type]
    store.bind(Named())
    return store


def check(source: str, count: int = 6) -> None:
    store = anew(source)
    assert store.names() == set(keys(count))
    for key in keys(count):
        assert key in store
        assert torch.equal(store.get(key), features(key))
    assert "ff" * 16 not in store
    assert store.get("ff" * 16) is None


def file_names(source: str) -> list[str]:
    return sorted(name for name, _ in open_place(source).names())


def test_what_was_put_is_found_wherever_it_lies(source: str) -> None:
    store = filled(source)
    check(source)
    assert len([name for name in file_names(source) if name != "store.json"]) == 6
    assert store.pack(shard_bytes=2 * 2 * 4 * 15 * 4) == 3
    names = file_names(source)
    assert [name for name in names if not name.startswith("shards/")] == ["manifest.json", "store.json"]
    assert len([name for name in names if name.startswith("shards/")]) == 3
    check(source)
    # The one that packed finds them too, and what is put later lies beside the shards.
    assert torch.equal(store.get(keys(1)[0]), features(keys(1)[0]))
    store.put(keys(7)[-1], features(keys(7)[-1]))
    check(source, 7)
    assert store.pack() == 1
    check(source, 7)


def test_a_store_of_another_prior_is_refused_wherever_it_lies(source: str) -> None:
    filled(source, 1)
    with pytest.raises(StoreError, match="fingerprint: store 'f1', prior 'f2'"):
        FeatureStore(source).bind(Named("f2"))


def test_a_pickle_finds_the_same_place(source: str) -> None:
    store = filled(source, form="aligned-int8", cache_bytes=123)
    twin = pickle.loads(pickle.dumps(store))
    assert (twin.where, twin.form, twin.cache_bytes, twin.memory_bytes) == (store.where, store.form, 123, 1)
    assert torch.equal(twin.get(keys(1)[0]), features(keys(1)[0]))


@pytest.mark.parametrize("manifest", ["whole", "gone", "damaged", "of other sizes", "wrong about it"])
def test_the_manifest_is_a_help_and_no_more(source: str, manifest: str) -> None:
    filled(source).pack()
    place = open_place(source)
    values = json.loads(place.read("manifest.json"))
    (name,) = values["shards"]
    if manifest == "gone":
        place.remove("manifest.json")
    elif manifest == "damaged":
        place.write("manifest.json", b"{" + json.dumps(values).encode())
    elif manifest == "of other sizes":
        values["bytes"][name] += 1
        place.write("manifest.json", json.dumps(values).encode())
    elif manifest == "wrong about it":
        for about in values["shards"][name].values():
            about["at"]["features"][2:] = [0, 1 << 40]
        place.write("manifest.json", json.dumps(values).encode())
    check(source)


def test_a_manifest_saves_reading_headers(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(source).pack(shard_bytes=1)
    monkeypatch.setattr(shards, "read_header", lambda *_: pytest.fail("read a header"))
    check(source)


def test_a_shard_that_another_process_combined_is_found_again(source: str) -> None:
    filled(source).pack(shard_bytes=1)
    reader = anew(source)
    assert torch.equal(reader.get(keys(1)[0]), features(keys(1)[0]))
    upkeep.merge(upkeep.open_store(source))
    for key in keys(6):
        assert torch.equal(reader.get(key), features(key))
    assert len([name for name in file_names(source) if name.startswith("shards/")]) == 1


def shard_of(source: str) -> str:
    return next(name for name in file_names(source) if name.startswith("shards/"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: data[:-5] + bytes([data[-5] ^ 4]) + data[-4:],
    "cut": lambda data: data[:-5],
    "empty": lambda data: b"",
    "no header": lambda data: b"\xff" * 8 + data[8:],
    "another header": lambda data: (2).to_bytes(8, "little") + b"[]" + data[10:],
    "deep": lambda data: (5000).to_bytes(8, "little") + b"[" * 5000 + data,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_shard_is_told_and_its_entries_are_replaced(source: str, damage: Callable[[bytes], bytes]) -> None:
    filled(source).pack()
    place, shard = open_place(source), shard_of(source)
    place.write(shard, damage(place.read(shard)))
    # It would find what is whole in a shard without a header.
    place.remove("manifest.json")
    store = anew(source)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lost = [key for key in keys(6) if store.get(key) is None]
    assert lost
    messages = [str(each.message) for each in told if issubclass(each.category, Vega3dWarning)]
    assert len(messages) == 1, messages
    assert shard in messages[0]
    assert "computed again and replaced" in messages[0]
    for key in lost:
        store.put(key, features(key))
        assert torch.equal(store.get(key), features(key))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(source)
        # And nothing but what is damaged is thrown away.
        assert upkeep.verify(upkeep.open_store(source))
        pruned = upkeep.prune(upkeep.open_store(source))
    assert pruned.damaged
    assert upkeep.verify(upkeep.open_store(source)) == {}
    check(source)


@pytest.mark.parametrize(
    ("about", "offsets"),
    [
        ({"dtype": "F32", "shape": [1 << 40]}, [0, 4]),
        ({"dtype": "F32", "shape": [1]}, [-4, 0]),
        ({"dtype": "F32", "shape": [1]}, [1 << 50, (1 << 50) + 4]),
        ({"dtype": "F31", "shape": [1]}, [0, 4]),
        ({"dtype": ["F32"], "shape": [1]}, [0, 4]),
        ({"dtype": "F32", "shape": "1"}, [0, 4]),
        ({"dtype": "F32", "shape": [1]}, [0]),
        ({"dtype": "F32", "shape": [1.0]}, [0, 4]),
        ({}, [0, 4]),
    ],
)
def test_a_header_that_lies_is_refused(about: dict[str, object], offsets: list[int]) -> None:
    header = json.dumps({"k:features": {**about, "data_offsets": offsets}, "__metadata__": {"k": "{}"}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0" * 4
    with pytest.raises(EntryError, match="wrong about the tensor"):
        shards.read_header("shards/x", data, len(data))


def fill(source: str, start: object, part: int) -> None:
    """One of several writers in one folder at once, which pack and combine as they like."""
    store = FeatureStore(source, memory_bytes=1)
    store.bind(Named())
    start.wait()  # type: ignore[attr-defined]
    for key in keys(24)[part::3]:
        store.put(key, features(key))
    store.pack(keys(24)[part::3], shard_bytes=1000)
    store.put(keys(24)[0], features(keys(24)[0]))
    upkeep.merge(upkeep.open_store(source))


def test_many_writers_need_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    workers = [context.Process(target=fill, args=(str(tmp_path), start, part)) for part in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert upkeep.verify(upkeep.open_store(tmp_path)) == {}
    check(str(tmp_path), 24)
    upkeep.prune(upkeep.open_store(tmp_path))
    check(str(tmp_path), 24)
    assert upkeep.describe(upkeep.open_store(tmp_path)).twice == 0


def test_a_full_disk_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(str(tmp_path))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FolderPlace, "write", full)
        with pytest.raises(
            StoreError, match=r"(?s)No space left.*No entry is lost.*512 MiB.*vega3d store merge .* --shard-mb"
        ):
            store.pack()
    check(str(tmp_path))


def test_packing_that_stops_anywhere_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write and each removal is the last thing that is done, one after the other."""
    done = 0
    for until in range(20):
        folder = str(tmp_path / str(until))
        store = filled(folder)
        left = [until]

        def counted(act: Callable[..., None], left: list[int] = left) -> Callable[..., None]:
            def step(*args: object) -> None:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                act(*args)

            return step

        with monkeypatch.context() as patched:
            patched.setattr(FolderPlace, "write", counted(FolderPlace.write))
            patched.setattr(FolderPlace, "remove", counted(FolderPlace.remove))
            try:
                store.pack(shard_bytes=3 * 2 * 4 * 15 * 4)
                done += 1
            except KeyboardInterrupt:
                pass
        check(folder)
        upkeep.merge(upkeep.open_store(folder))
        upkeep.prune(upkeep.open_store(folder))
        check(folder)
    assert 0 < done < 20


# Forms


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_form_is_part_of_the_name_and_comes_back(source: str, form: Form) -> None:
    grid = TokenGrid(2, 3, 5) if form.aligned else None
    store = anew(source, form=form)
    name = store.name(keys(1)[0], grid, "bilinear")
    other = [f.name(keys(1)[0], grid if f.aligned else None, "bilinear") for f in FORMS if f.aligned == form.aligned]
    assert len(set(other)) == 3
    given = features(keys(1)[0])
    kept = store.put(name, given)
    for again in (anew(source), anew(source)):
        assert torch.equal(again.get(name), kept)
        again.pack()
    assert anew(source).get(keys(1)[0]) is None or not (form.aligned or form.numbers)
    error = (kept.float() - given).abs()
    if not form.numbers:
        assert torch.equal(kept, given)
    elif form.numbers == "bf16":
        assert kept.dtype == torch.bfloat16
        assert torch.equal(kept, given.to(torch.bfloat16))
    else:
        # Half a step of each token's own scale.
        assert bool((error <= given.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.001).all())
    assert upkeep.verify(upkeep.open_store(source)) == {}


def test_one_clip_on_two_grids_are_two_entries() -> None:
    aligned = Form.parse("aligned")
    names = {aligned.name("k", TokenGrid(*grid), space) for grid in [(1, 2, 3), (1, 3, 2)] for space in ("a", "b")}
    assert len(names) == 4
    with pytest.raises(StoreError, match="belongs to a token grid"):
        aligned.name("k")


def test_an_unknown_form_names_close_ones() -> None:
    with pytest.raises(StoreError, match="Did you mean 'aligned-int8'"):
        FeatureStore(form="aligned-int9")


def test_a_token_of_zeros_stays_zero() -> None:
    store = FeatureStore(form="native-int8")
    given = torch.zeros(1, 4, 2, 2)
    given[..., 0] = 1e-20
    assert torch.isfinite(store.put(store.name("ab" * 16), given)).all()
    assert torch.equal(store.get(store.name("ab" * 16))[..., 1], torch.zeros(1, 4, 2))


def test_the_sizes_that_are_promised() -> None:
    """32 frames of Wan 1.3B for LLaVA-Video's 14 x 14 tokens: under 20 MB, 100,000 clips under 2 TB."""
    aligned = (32, 1536, 14, 14)
    assert entry_bytes(aligned, Form.parse("aligned-bf16")) == 19_267_584
    assert entry_bytes(aligned, Form.parse("aligned-int8")) == 9_658_880
    assert 100_000 * entry_bytes(aligned, Form.parse("aligned-bf16")) < 2e12
    # What they are measured against: native, 45 x 80 latent cells at 720x1280 in half precision.
    assert entry_bytes((32, 1536, 45, 80), Form.parse("native"), 2) == 353_894_400


# Behind a URL


def test_what_was_read_once_lies_on_this_machine() -> None:
    url = f"memory://stores/{next(_numbers)}"
    filled(url, 3, cache_bytes=0).pack()
    store = FeatureStore(url, memory_bytes=1)
    store.bind(Named())
    assert keys(1)[0] not in store.cache
    assert store.fetch(keys(1)[0])
    assert not store.fetch("ff" * 16)
    assert torch.equal(store.get(keys(2)[1]), features(keys(2)[1]))
    files = fsspec.filesystem("memory")
    files.rm(f"{url}/shards", recursive=True)
    for key in keys(2):
        assert torch.equal(store.get(key), features(key))
    # A damaged copy is not believed: the store itself is asked, which has lost it here.
    path = next(store.cache.folder.glob(f"*/{keys(1)[0]}.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    store.get(keys(2)[1])
    assert store.get(keys(1)[0]) is None


def test_the_copies_on_this_machine_are_bounded(tmp_path: Path) -> None:
    cache = EntryCache(tmp_path, limit=3000)
    for number, key in enumerate(keys(20)):
        cache.put(key, {"features": torch.full((1, 1, 1, 64), float(number))}, {})
    held = list(tmp_path.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in held) <= 3000
    assert keys(20)[-1] in cache
    assert keys(20)[0] not in cache


def test_a_url_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"nosuch://x cannot be opened"):
        FeatureStore("nosuch://x")

    def missing(*_: object) -> None:
        raise ImportError("Please install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StoreError, match="pip install s3fs"):
        FeatureStore("s3://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StoreError, match=r"pip install 'vega3d-plugin\[remote\]'"):
        FeatureStore("s3://bucket/x")


def test_a_place_that_cannot_be_reached_is_used_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no route to bucket")

    store = FeatureStore(f"memory://stores/{next(_numbers)}")
    monkeypatch.setattr(RemotePlace, "_folder", refuse)
    with pytest.warns(Vega3dWarning, match="Features are not kept in the feature store memory://"):
        store.bind(Named())
    # Told once: another warning would be an error here.
    store.put(keys(1)[0], features(keys(1)[0]))
    assert torch.equal(store.get(keys(1)[0]), features(keys(1)[0]))


# The commands


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["store", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands_look_after_a_store(source: str, tmp_path: Path) -> None:
    filled(source, 4).pack(keys(4)[:2])
    about = json.loads(run("info", source, "--json"))
    assert (about["entries"], about["loose"], about["shards"], about["twice"]) == (4, 2, 1, 0)
    assert about["kinds"] == {"computed in float32, native": 4}
    assert "Every entry holds." in run("verify", source)
    place = open_place(source)
    name = f"{keys(4)[3][:2]}/{keys(4)[3]}.safetensors"
    place.write(name, DAMAGE["a flipped bit"](place.read(name)))
    assert list(json.loads(run("verify", source, "--json", code=1))["damaged"]) == [name]
    assert json.loads(run("prune", source, "--dry-run", "--json"))["damaged"]
    assert place.size(name) is not None
    run("prune", source)
    assert place.size(name) is None
    # Copy, and again: nothing is left to do.
    target = str(tmp_path / "target")
    assert "3 entries copied" in run("copy", source, target)
    assert "0 entries copied" in run("copy", source, target)
    check(target, 3)
    other = filled(str(tmp_path / "other"), 6)
    assert "3 entries from" in run("merge", target, str(other.folder))
    check(target, 6)
    assert json.loads(run("info", target, "--json"))["shards"] == 1
    kept = tmp_path / "keys.txt"
    kept.write_text("\n".join(keys(2)))
    assert json.loads(run("prune", target, "--keep", str(kept), "--json"))["unwanted"] == 4
    check(target, 2)


def test_stores_of_two_priors_are_not_merged(tmp_path: Path) -> None:
    filled(str(tmp_path / "a"))
    other = FeatureStore(tmp_path / "b")
    other.bind(Named("f2"))
    done = CliRunner().invoke(app, ["store", "merge", str(tmp_path / "a"), str(tmp_path / "b")])
    assert isinstance(done.exception, StoreError)
    assert "belongs to another prior" in str(done.exception)


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["store", "info", str(tmp_path)])
    assert "is no feature store" in str(done.exception)
    (tmp_path / "empty.txt").touch()
    filled(str(tmp_path / "a"))
    done = CliRunner().invoke(app, ["store", "prune", str(tmp_path / "a"), "--keep", str(tmp_path / "empty.txt")])
    assert "everything would be removed" in str(done.exception)


def test_fsspec_is_not_needed_for_folders(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fsspec'] = None; sys.modules['fsspec.core'] = None\n"
        f"from vega3d_plugin.features import FeatureStore; import torch\n"
        f"s = FeatureStore({str(tmp_path)!r}); s.put('ab' * 16, torch.ones(1, 1, 1, 1)); s.pack()\n"
        f"print(FeatureStore({str(tmp_path)!r}).get('ab' * 16).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "1.0"
