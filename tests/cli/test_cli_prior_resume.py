"""``vega3d prior features`` that is stopped: it says what it leaves, draws as it goes, and resumes bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from vega3d_plugin.cli.app import app
from vega3d_plugin.cli.prior import features as verb
from vega3d_plugin.contracts.errors import SettingsError, StoreError
from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.features.parts import FolderParts
from vega3d_plugin.scenes.rendered import render_room
from vega3d_plugin.scenes.video import write_video

CONTEXTS = {
    "frame": ["--set", "chunk_frames=1"],
    "views": ["--set", "context=views", "--set", "window=4", "--set", "overlap=2"],
    "video": ["--set", "context=video", "--set", "window=2", "--set", "overlap=1"],
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "mine.mp4"
    write_video(path, render_room(9, (48, 80), 0).frames)
    return path


def run(video: Path, out: Path, *options: str) -> Result:
    common = ["--prior", "tiny-wan", "--frames", "7", "--set", "size=[48,80]", "--out", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, ["prior", "features", str(video), *common, *options])


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once so many parts of the features have been kept."""
    real, done = FolderParts.put, 0

    def put(self: FolderParts, stage: str, rows: range, part: Tensor) -> None:
        nonlocal done
        real(self, stage, rows, part)
        done += stage == "features"
        if done == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderParts, "put", put)


@pytest.mark.parametrize("context", CONTEXTS)
def test_it_resumes_bit_for_bit(context: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CONTEXTS[context]
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    assert run(video, whole, *options).exit_code == 0
    drawn: list[int] = []
    real = verb._draw
    monkeypatch.setattr(verb, "_draw", lambda *a: (drawn.append(len(a[5])), real(*a)))
    with monkeypatch.context() as patched:
        patched.setattr(verb, "REDRAWN", 0.0)
        stop_after(2, patched)
        stopped = run(video, out, *options)
    assert stopped.exit_code == 130
    assert not out.exists()
    text = " ".join(stopped.output.split())
    assert f"are kept in {out.with_suffix('.parts')}" in text
    assert "The same command resumes" in text
    assert out.with_suffix(".png").is_file()
    assert drawn == sorted(drawn)
    resumed = run(video, out, *options)
    assert resumed.exit_code == 0, resumed.output
    assert "parts were there from an earlier call" in " ".join(resumed.output.split())
    assert load_file(out)["features"].equal(load_file(whole)["features"])
    assert not out.with_suffix(".parts").exists()
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_parts_of_other_features_are_not_taken(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        run(video, out, *CONTEXTS["frame"])
    other = ["--set", "timestep=500"]
    assert run(video, whole, *CONTEXTS["frame"], *other).exit_code == 0
    found = run(video, out, *CONTEXTS["frame"], *other)
    assert "from an earlier call" not in " ".join(found.output.split())
    assert load_file(out)["features"].equal(load_file(whole)["features"])


def test_a_part_that_is_cut_short_is_computed_again(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    run(video, whole, *CONTEXTS["frame"])
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        run(video, out, *CONTEXTS["frame"])
    for part in sorted(out.with_suffix(".parts").glob("features-*"))[:2]:
        part.write_bytes(part.read_bytes()[:-7])
    assert run(video, out, *CONTEXTS["frame"]).exit_code == 0
    assert load_file(out)["features"].equal(load_file(whole)["features"])


def test_a_folder_of_others_is_left_alone(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.parts"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    result = run(video, tmp_path / "out.safetensors")
    assert isinstance(result.exception, StoreError)
    assert "holds no parts of features" in str(result.exception)
    assert (folder / "letter.txt").read_text() == "mine"


def test_stopped_between_latents_and_features(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FolderParts.put

    def put(self: FolderParts, stage: str, rows: range, part: Tensor) -> None:
        real(self, stage, rows, part)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderParts, "put", put)
        result = run(video, tmp_path / "out.safetensors")
    assert result.exit_code == 130
    assert "kept in" in result.output
    assert "out.parts" in result.output.replace("\n", "")
    assert "were there from an earlier call" in " ".join(run(video, tmp_path / "out.safetensors").output.split())


def test_a_size_as_one_types_it_first() -> None:
    with pytest.raises(SettingsError, match=r"size: Input should be \[height, width\], such as \[480, 832\]"):
        PriorSettings.parse({"size": "480x832"})


def test_stopped_before_anything_was_computed(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderParts, "get", stop)
    result = run(video, tmp_path / "out.safetensors")
    assert result.exit_code == 130
    assert "Interrupted before any features were computed" in result.output


def test_what_is_complete_is_not_computed_again(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.safetensors"
    assert run(video, out).exit_code == 0
    written = out.read_bytes()
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        again = run(video, out)
        assert again.exit_code == 0, again.output
        assert "holds these very features already" in again.stdout
        assert out.read_bytes() == written
        # Other settings are other features.
        assert run(video, out, "--set", "timestep=100").exit_code == 130
    features = load_file(out)["features"].clone()
    out.write_bytes(written[:-50])
    assert run(video, out).exit_code == 0
    assert torch.equal(load_file(out)["features"], features)
