"""``vega3d analyse``: what it writes is what the library finds, and mistakes are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.analysis import Comparison, CorrespondenceResult, SweepResult
from vega3d_plugin.cli import main
from vega3d_plugin.cli.analyse.asked import asked_priors, numbers, safe_name
from vega3d_plugin.cli.app import app
from vega3d_plugin.errors import SettingsError, UnknownNameError

ROOMS = ["--scenes", "room:0..1?views=6&size=72x96", "--views", "4", "--set", "size=[48,80]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["analyse", *arguments], catch_exceptions=True)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_correspondence_writes_what_it_prints(here: Path) -> None:
    printed = run("correspondence", "tiny-wan", "tiny-wan?tap=1", *ROOMS, "--contexts", "frame", "--store", "features")
    names = ["tiny-wan_size-48-80_frame_visible", "tiny-wan_tap-1_size-48-80_frame_visible"]
    results = [CorrespondenceResult.read(here / "analysis_out" / f"{name}.json") for name in names]
    assert [each.priors[0].settings["tap"] for each in results] == [2, 1]
    for name, result in zip(names, results, strict=True):
        assert (here / "analysis_out" / f"{name}.txt").read_text() == result.table() + "\n"
        with Image.open(here / "analysis_out" / f"{name}.png") as picture:
            assert picture.size == result.plot().size
        assert f"{name}.json" in printed.output
    assert results[0].priors[0].label in printed.output
    assert "untrained twin" in printed.output
    # Two scenes for each prior; a prior and its twin have stores of their own.
    assert len(list((here / "analysis_out" / "pictures").glob("room_000?_tiny-wan_frame_*.png"))) == 4
    assert len(list((here / "features").iterdir())) == 4

    compared = run("compare", *(str(here / "analysis_out" / f"{name}.json") for name in names))
    assert "tiny-wan (frame), tap 1" in compared.output
    assert Comparison.read(here / "analysis_out" / "comparison.json").labels[1] == "tiny-wan (frame), tap 1"


def test_json_alone_on_stdout(here: Path) -> None:
    arguments = ["correspondence", "tiny-wan", *ROOMS, "--contexts", "frame", "--protocol", "released", "--json"]
    code = f"import sys; sys.argv = {['vega3d', 'analyse', *arguments]!r}\nfrom vega3d_plugin.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert CorrespondenceResult.from_json(ran.stdout).protocol == "released"
    assert "random weights" in ran.stderr


def test_sweep(here: Path) -> None:
    printed = run("sweep", "tiny-wan", *ROOMS, "--timesteps", "0..600..300", "--taps", "0,-1", "--out", "swept")
    result = SweepResult.read(here / "swept" / "tiny-wan_size-48-80_frame_sweep.json")
    assert (result.timesteps, result.taps) == ((0, 300, 600), (0, 3))
    assert result.table().splitlines()[0] in printed.output
    assert (here / "swept" / "tiny-wan_size-48-80_frame_sweep.png").is_file()
    # Everything is there already.
    again = run("sweep", "tiny-wan", *ROOMS, "--timesteps", "0..600..300", "--taps", "0,-1", "--out", "swept", "--json")
    assert SweepResult.from_json(again.stdout[again.stdout.index("{") :]) == result


def test_numbers() -> None:
    assert numbers("0,100, 300", "--taps") == [0, 100, 300]
    assert numbers("10..14..2,20", "--taps") == [10, 12, 14, 20]
    assert numbers("-1", "--taps") == [-1]
    for wrong in ("", "a", "1..", "5..1", "1..9..0", "0..999999", "1;2", "1e3"):
        with pytest.raises(typer.BadParameter):
            numbers(wrong, "--taps")


def test_priors_as_they_are_written() -> None:
    ((name, settings), (other, plain)) = asked_priors(["tiny-wan?tap=1&context=views", "tiny-wan"], ["seed=3"])
    assert (settings.tap, settings.context, settings.seed) == (1, "views", 3)
    assert (plain.tap, plain.seed) == (2, 3)
    assert (name, other) == ("tiny-wan_tap-1_context-views_seed-3", "tiny-wan_seed-3")
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny-wan'"):
        asked_priors(["tiny-van"], None)
    with pytest.raises(SettingsError, match="tapp"):
        asked_priors(["tiny-wan?tapp=1"], None)
    assert safe_name("../../etc/passwd?x=/y") == "etc-passwd-x-y"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["correspondence", "tiny-wan", "--scenes", "nowhere"], "nowhere does not exist"),
        (["correspondence", "tiny-wan", "--scenes", "room:0", "--protocol", "seen"], "Unknown protocol 'seen'"),
        (["correspondence", "tiny-wan", "--scenes", "room:0", "--contexts", "clip"], "no context 'clip'"),
        (["correspondence", "tiny-wan", "--scenes", "stereo:moped"], "moped"),
        (["sweep", "tiny-wan", "--scenes", "room:0?views=4", "--taps", "7"], "4 blocks"),
        (["compare", "missing.json"], "missing.json"),
    ],
)
def test_mistakes_are_told_in_one_message(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["vega3d", "analyse", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: ") or "\nError: " in told
    assert message in told
    assert "Traceback" not in told


def test_out_must_be_a_folder(here: Path) -> None:
    (here / "file").write_text("x")
    result = CliRunner().invoke(app, ["analyse", "compare", "x.json", "--out", "file"])
    assert result.exit_code == 1
    assert "is a file" in str(result.exception)


def test_python_finds_it_below_the_library() -> None:
    assert vega3d.analysis.correspondence.__name__ == "correspondence"
    assert "sweep" in dir(vega3d.analysis)
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = vega3d.analysis.swep
