"""``vega3d analyse readout`` and what ``report`` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vega3d_plugin.analysis import ReadoutResult
from vega3d_plugin.cli.app import app

pytestmark = pytest.mark.filterwarnings("ignore::vega3d_plugin.analysis.scoring.AnalysisWarning")
ROOMS = ("--scenes", "room:0..3?views=4&size=24x36")
SHORT = ("--contexts", "frame", "--views", "4", "--steps", "1", "--set", "size=[64,96]")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyse", *map(str, arguments)])
    return result.exit_code, " ".join((result.output + str(result.exception or "")).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readout") / "out"
    code, output = run("readout", "tiny-wan", *ROOMS, *SHORT, "--controls", "position only", "--out", folder)
    assert code == 0, output
    assert "trained on 2 scenes, judged on 2 others" in output
    assert "position only" in output
    assert "Wrote" in output
    return folder


def test_what_it_writes(folder: Path) -> None:
    (path,) = folder.glob("*_readout.json")
    result = ReadoutResult.read(path)
    assert result.options["steps"] == result.options["depth_steps"] == 1
    assert [each.label for each in result.priors] == ["tiny-wan (frame)"]
    assert result.priors[0].controls == ["itself", "position only"]
    assert path.with_suffix(".txt").read_text().strip() == result.table().strip()
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "scenes").glob("*.jpg"))) == 4
    assert len(list((folder / "records").glob("*.json"))) == 2


def test_a_second_run_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vega3d_plugin.analysis.readouts.experiment as experiment

    monkeypatch.setattr(experiment, "train_head", lambda *a: pytest.fail("trained again"))
    code, output = run("readout", "tiny-wan", *ROOMS, *SHORT, "--controls", "none", "--out", folder, "--json")
    assert code == 0, output
    assert '"kind": "readout"' in output
    assert json.loads(output[output.index("{") : output.rindex("}") + 1])["priors"][0]["prior"] == "tiny-wan"


def test_the_report_of_it(folder: Path) -> None:
    code, output = run("report", folder)
    assert code == 0, output
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Does tiny-wan know space?" in text
    assert "what the prior sees" in text
    assert "judged without an untrained twin" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tiny-wan", "--scenes", "room:0..2?views=4&size=24x36"), "at least 4 scenes, found 3"),
        (("tiny-wan", "--scenes", "room:0..3?views=3&size=24x36"), "3 views would be shown"),
        (("tiny-wan", *ROOMS, "--controls", "position"), "Did you mean 'position only'"),
        (("tiny-wan", *ROOMS, "--contexts", "frames"), "no context 'frames'"),
        (("tiny-wam", *ROOMS), "Did you mean 'tiny-wan'"),
        (("tiny-wan", *ROOMS, "--size", "large"), "small"),
        (("tiny-wan", "--scenes", "nowhere"), "nowhere"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    code, output = run("readout", *arguments, "--out", tmp_path / "out")
    assert code != 0
    assert told in output, output
