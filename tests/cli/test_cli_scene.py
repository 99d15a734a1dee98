"""``vega3d scene``: what it shows is what the scene holds, and each mistake is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_layouts as layouts
from PIL import Image
from typer.testing import CliRunner, Result

from vega3d_plugin.cli import main, output
from vega3d_plugin.cli.app import app
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.views import choose_views
from vega3d_plugin.scenes.worlds import rendered_scene

ROOM = "room:6?views=7&size=48x64"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output.out, "width", 100)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("VEGA3D_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def room() -> Scene:
    return layouts.kept(rendered_scene(6, 7, (48, 64)))


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["scene", *words], catch_exceptions=True)


def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a user reads on stderr when the command fails with code 1."""
    monkeypatch.setattr(sys, "argv", ["vega3d", "scene", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    return capsys.readouterr().err


def test_info_shows_what_is_there(room: Scene) -> None:
    told = run("info", ROOM)
    assert told.exit_code == 0, told.output
    for text in ("7, 00000 to 00006", "64x48", "depth, intrinsics, poses, alignment, instances", "pairs of views"):
        assert text in told.output
    values = json.loads(run("info", ROOM, "--json").output)
    assert values["views"] == 7
    assert values["fingerprint"] == room.fingerprint
    assert values["agreement"] > 0.8
    assert values["objects"]["door"] == 1
    assert values["path_metres"] == pytest.approx(float((room.poses[1:] - room.poses[:-1])[:, :3, 3].norm(dim=1).sum()))


def test_info_of_pictures_alone(room: Scene) -> None:
    for i, view in enumerate(room.views[:2]):
        layouts.save_png(Path("pictures") / f"{i}.png", view)
    told = run("info", "pictures")
    assert told.exit_code == 0
    assert "agreement" not in told.output
    assert json.loads(run("info", "pictures", "--json").output)["known"] == []


def test_clip_chooses_and_draws(room: Scene) -> None:
    told = run("clip", ROOM, "--views", "coverage", "--count", "3", "--json")
    assert told.exit_code == 0, told.output
    values = json.loads(told.output)
    expected = choose_views(room, "coverage", 3)
    assert [row["index"] for row in values["views"]] == list(expected.indices)
    assert [row["gain"] for row in values["views"]] == list(expected.gains)
    assert values["order"] == list(expected.order)
    assert Image.open(values["sheet"]).size[0] > 400
    shown = run("clip", ROOM, "--views", "given", "--given", "00002, 5", "--out", "two.png")
    assert "of 6,0" in shown.output or "voxels seen" in shown.output
    assert Path("two.png").is_file()


def test_clip_of_a_video(room: Scene) -> None:
    assert run("export", ROOM, "--to", "video", "--out", "room.mp4").exit_code == 0
    told = run("clip", "room.mp4", "--count", "3")
    assert told.exit_code == 0, told.output
    assert "adds" not in told.output
    assert Path("room_views.png").is_file()


def test_export_writes_a_scene_that_can_be_read(room: Scene) -> None:
    told = run("export", ROOM, "--to", "folder", "--out", "out", "--views", "every", "--step", "2")
    assert told.output == "Wrote out: 4 views\n"
    found = open_scene("out")
    assert np.allclose(found.poses, room.poses[::2], atol=1e-9)
    assert "Wrote rows.json: " in run("export", ROOM, "--to", "rows", "--out", "rows.json", "--style", "vg-llm").output
    assert json.loads(Path("rows.json").read_text())[0]["cam2global"]
    Path("asked.json").write_text('[{"question": "Q?", "answer": "A"}]')
    words = ("export", "out", "--to", "rows", "--out", "own.json", "--questions", "asked.json", "--views", "uniform")
    assert run(*words, "--count", "2").output == "Wrote own.json: 1 rows\n"
    (row,) = json.loads(Path("own.json").read_text())
    assert row["conversations"][0]["value"] == "<image>\n<image>\nQ?"


def test_mistakes_are_one_line(
    room: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed(monkeypatch, capsys, "info", "roo").startswith("Error: roo does not exist.")
    told = failed(monkeypatch, capsys, "clip", ROOM, "--views", "given", "--given", "99")
    assert told == "Error: Scene 'room_0006' has 7 views, the last is number 6: no 99.\n"
    wrong = layouts.write_posed_images(room, Path("scene"))
    for path in wrong.glob("0*.txt"):
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)))
    for verb in ("info", "clip"):
        told = failed(monkeypatch, capsys, verb, "scene")
        assert "Error: Scene 'scene' (scene): its poses are world-to-camera." in told
        assert told.count("\n") == 1
    Path("rows.json").mkdir()
    assert "is a folder" in failed(monkeypatch, capsys, "export", ROOM, "--to", "rows", "--out", "rows.json")
    assert run("clip", "scene", "--no-check").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--views", "every", "--count", "3"), "--count has no meaning with --views every"),
        (("--step", "3"), "--step has no meaning with --views uniform"),
        (("--views", "given"), "--views given needs --given"),
        (("--ratio", "0.5"), "--ratio has no meaning"),
        (("--out", "sheet.jpg"), "must end in .png"),
    ],
)
def test_options_that_do_not_belong_together(words: tuple[str, ...], message: str) -> None:
    told = run("clip", ROOM, *words)
    assert told.exit_code == 2
    assert message in " ".join(told.output.replace("\u2502", " ").split())


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom vega3d_plugin.cli.scene import scene, options\n"
        "print([m for m in ('vega3d_plugin.scenes.scene', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
