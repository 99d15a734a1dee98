"""The files of a saved branch: always one branch's, whatever happens to whoever writes them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.kills import every_kill
from support.saved_branches import record, tensors
from torch import Tensor

import vega3d
from vega3d_plugin.checkpoints import branch_files
from vega3d_plugin.checkpoints.branch_files import read_branch, write_branch
from vega3d_plugin.checkpoints.reading import holds_branch, read_saved
from vega3d_plugin.contracts.errors import SavedBranchError, Vega3dWarning
from vega3d_plugin.storage.record import CONFIG_FILE, WEIGHTS_FILE, encode_record

FILES = ["README.md", WEIGHTS_FILE, CONFIG_FILE]


def save(folder: Path, timestep: int, **options: Any) -> None:
    write_branch(folder, record(timestep), tensors(timestep), **options)


def which(folder: Path) -> int:
    """The branch in a folder, whose settings and weights must be one's."""
    saved = read_branch(folder)
    timestep = saved.record["settings"]["prior"]["timestep"]
    assert saved.record == record(timestep)
    assert saved.tensors.keys() == tensors(timestep).keys()
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in tensors(timestep).items())
    return int(timestep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a", 300)
    assert names(tmp_path / "a") == sorted(FILES)
    assert which(tmp_path / "a") == 300
    # The weights are a branch by themselves, and the settings can be read without any library.
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / WEIGHTS_FILE, tmp_path / "b")
    assert holds_branch(tmp_path / "b")
    with pytest.warns(Vega3dWarning, match=f"has no {CONFIG_FILE}"):
        assert which(tmp_path / "b") == 300
    assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["settings"]["prior"]["timestep"] == 300


@pytest.mark.parametrize("over", [True, False], ids=["over a branch", "new folder"])
def test_a_kill_at_any_moment_leaves_the_old_branch_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    monkeypatch.setattr(branch_files, "_PATIENCE", 0.0)
    folder = tmp_path / "branch"
    if over:
        save(folder, 300)
    found: list[tuple[int | None, bool]] = []
    for _ in every_kill(lambda: save(folder, 700)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.append((which(folder) if holds_branch(folder) else None, bool(told)))
        if over:
            # Saving again mends the folder, and sweeps what the dead one left.
            save(folder, 300)
            assert which(folder) == 300
            assert names(folder) == sorted(FILES)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    branches = [branch for branch, _ in found]
    assert set(branches) == {300 if over else None, 700}
    # First the old one, then the new one.
    assert branches == sorted(branches, key=lambda branch: branch or 0)
    # Between the two renames the settings to read are the old ones, or none, and that is told.
    assert {branch for branch, told in found if told} == {700}


def test_who_reads_while_others_save_never_sees_two_branches(tmp_path: Path) -> None:
    save(tmp_path, 300, card=False)
    context = multiprocessing.get_context("fork")
    stop = context.Event()

    def write(timestep: int) -> None:
        while not stop.is_set():
            save(tmp_path, timestep, card=False)

    writers = [context.Process(target=write, args=(timestep,)) for timestep in (300, 700)]
    for writer in writers:
        writer.start()
    try:
        seen = {which(tmp_path) for _ in range(60)}
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert seen <= {300, 700}
    # Whoever came last, settings and weights are of one branch.
    assert which(tmp_path) in (300, 700)


def test_threads_that_save_into_one_folder(tmp_path: Path) -> None:
    threads = [threading.Thread(target=save, args=(tmp_path, timestep)) for timestep in (300, 500, 700)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert which(tmp_path) in (300, 500, 700)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def outcome(folder: Path) -> str:
    """What comes of reading: an error, or the right branch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Vega3dWarning)
        try:
            assert which(folder) == 300
        except SavedBranchError:
            return "error"
    return "right"


def test_a_flipped_bit_is_an_error_or_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tensors, in their names, in the record that the weights carry, and in the settings to read."""
    monkeypatch.setattr(branch_files, "_PATIENCE", 0.0)
    save(tmp_path, 300)
    weights, config = tmp_path / WEIGHTS_FILE, tmp_path / CONFIG_FILE
    size, header = weights.stat().st_size, 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    for path, places in ((weights, [*range(0, header, 7), *range(header, size, 97)]), (config, range(0, 900, 7))):
        for place in places:
            whole = path.read_bytes()
            flip(path, place)
            found = outcome(tmp_path)
            assert found == "error" or path == config or place < header, place
            # Another file: the old one may still be mapped into memory.
            path.unlink()
            path.write_bytes(whole)
    assert outcome(tmp_path) == "right"


def test_settings_that_were_changed_by_hand_are_told_with_both_values(tmp_path: Path) -> None:
    save(tmp_path, 300)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values["settings"]["prior"]["timestep"] = 700
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(SavedBranchError) as told:
        read_branch(tmp_path)
    for part in (CONFIG_FILE, "was changed after it was saved", "settings.prior.timestep 700", "300 with the weights"):
        assert part in str(told.value)
    # Its own digest is of no help to whoever changes the rest.
    values["digest"] = branch_files.digest({key: value for key, value in values.items() if key != "digest"})
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.warns(Vega3dWarning, match=r"timestep 700 in .*300 with the weights.*What stands in the weights"):
        assert which(tmp_path) == 300


def test_files_of_two_branches(tmp_path: Path) -> None:
    save(tmp_path / "a", 300)
    save(tmp_path / "b", 700)
    shutil.copy(tmp_path / "b" / WEIGHTS_FILE, tmp_path / "a")
    with pytest.warns(Vega3dWarning, match="do not belong together"):
        assert which(tmp_path / "a") == 700
    # Weights of an older version carry nothing that could be compared, settings of this one do.
    save_file(tensors(300), tmp_path / "b" / WEIGHTS_FILE)
    with pytest.raises(SavedBranchError, match="do not belong together: the weights carry no record of these settings"):
        read_branch(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS_FILE).unlink()
    with pytest.raises(SavedBranchError, match=f"incomplete: {CONFIG_FILE} without {WEIGHTS_FILE}"):
        read_branch(tmp_path / "b")


# The card


def test_the_card_belongs_to_the_save(tmp_path: Path) -> None:
    save(tmp_path, 300)
    first = (tmp_path / "README.md").read_text()
    assert "`f300`" in first
    save(tmp_path, 700)
    assert "`f700`" in (tmp_path / "README.md").read_text()
    assert "`f300`" not in (tmp_path / "README.md").read_text()
    # Somebody's own words are not lost.
    (tmp_path / "README.md").write_text(first.replace("# Generative branch", "# My branch"))
    save(tmp_path, 500)
    assert "# My branch" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("Mine alone.")
    save(tmp_path, 500)
    assert (tmp_path / "README.md").read_text() == "Mine alone."
    assert which(tmp_path) == 500


# NaN


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_branch_that_has_diverged_is_told_on_save_and_refused_on_load(tmp_path: Path, value: float) -> None:
    from vega3d_qwen_vl.tiny import tiny_model

    model = vega3d.patch(tiny_model(), "tiny-wan", init="released", projector={"name": "mlp", "hidden_dim": 8})
    with torch.no_grad():
        next(iter(vega3d.get_handle(model).parameters())).flatten()[3] = value
    name = next(name for name, _ in vega3d.get_handle(model).branch.named_parameters())
    with pytest.warns(Vega3dWarning, match=f"NaN or infinity in {name}: training has diverged"):
        vega3d.save_pretrained(model, tmp_path)
    fresh = tiny_model()
    with pytest.raises(SavedBranchError, match=f"holds NaN or infinity in {name}"):
        vega3d.load_pretrained(fresh, tmp_path)
    assert not vega3d.is_patched(fresh)
    # What there is can still be looked at.
    assert read_saved(tmp_path).tensors.keys() >= {name}


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from vega3d_qwen_vl.tiny import tiny_model

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = vega3d.patch(tiny_model(), "tiny-wan", projector={"name": "mlp", "hidden_dim": 8})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SavedBranchError, match=r"cannot be saved in .*No space left on device"):
        vega3d.save_pretrained(model, tmp_path / "a")
    monkeypatch.undo()
    assert names(tmp_path / "a") == []


# Two branches in one folder


def as_trainer(timestep: int, lead: str = "model.visual.vega3d.") -> dict[str, Tensor]:
    saved = {**tensors(timestep), "record": encode_record(record(timestep))}
    return {f"{lead}{name}": tensor for name, tensor in saved.items()}


OTHERS: dict[str, Callable[[Path, int], object]] = {
    "a whole model": lambda folder, t: save_file(as_trainer(t), folder / "model.safetensors"),
    "an adapter": lambda folder, t: save_file(as_trainer(t), folder / "adapter_model.safetensors"),
    "a pickle": lambda folder, t: torch.save(as_trainer(t), folder / "pytorch_model.bin"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_two_branches_in_one_folder_are_an_error_that_names_both(
    tmp_path: Path, other: Callable[[Path, int], object]
) -> None:
    save(tmp_path, 300)
    other(tmp_path, 300)
    # The same branch twice, as `vega3d run` leaves it beside a script's own files.
    assert read_saved(tmp_path).record == record(300)
    other(tmp_path, 700)
    file = next(path.name for path in tmp_path.iterdir() if "model" in path.name)
    with pytest.raises(SavedBranchError) as told:
        read_saved(tmp_path)
    for part in ("holds two branches", f"one in {WEIGHTS_FILE} and one in {file}", "300 in the first, 700 in the"):
        assert part in str(told.value)


def test_trained_on_and_saved_as_a_host_is(tmp_path: Path) -> None:
    """The same settings, other weights: which of them is meant cannot be told."""
    save(tmp_path, 300)
    moved = as_trainer(300)
    moved["model.visual.vega3d.fuser.gate"] = moved["model.visual.vega3d.fuser.gate"] + 1
    save_file(moved, tmp_path / "model.safetensors")
    with pytest.raises(SavedBranchError, match=r"holds two branches.*\(fuser\.gate differs\)"):
        read_saved(tmp_path)
    # In half precision it is the same one.
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in as_trainer(300).items()}
    save_file(half, tmp_path / "model.safetensors")
    assert read_saved(tmp_path).tensors["fuser.gate"].dtype == torch.float32


def test_shards_of_an_earlier_save_are_not_read(tmp_path: Path) -> None:
    """A model saved again in other shards leaves the old ones; its index tells which are its own."""
    items = list(as_trainer(700).items())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, part in zip(files, (items[:1], items[1:]), strict=True):
        save_file(dict(part), tmp_path / file)
    index = {name: files[0] if number < 1 else files[1] for number, (name, _) in enumerate(items)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file(as_trainer(300), tmp_path / "model-00003-of-00003.safetensors")
    assert read_saved(tmp_path).record["settings"]["prior"]["timestep"] == 700
    (tmp_path / files[1]).unlink()
    with pytest.raises(SavedBranchError, match=rf"index\.json names {files[1]}, which is missing"):
        read_saved(tmp_path)
    outside = dict.fromkeys(index, "../elsewhere.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(
        SavedBranchError, match=r"weight_map\..* is '\.\./elsewhere\.safetensors', expected the name of a file beside"
    ):
        read_saved(tmp_path)


def test_the_weights_carry_record_and_checksum(tmp_path: Path) -> None:
    save(tmp_path, 300)
    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as handle:
        metadata = handle.metadata()
    assert json.loads(metadata[branch_files.RECORD]) == record(300)
    assert metadata[branch_files.CHECKSUM]
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == tensors(300).keys()
