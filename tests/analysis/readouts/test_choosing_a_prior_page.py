"""The page on choosing a prior: its commands are accepted, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from vega3d_plugin.cli.app import app

PAGE = (Path(__file__).parents[3] / "docs" / "choosing_a_prior.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^vega3d (.+)$", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line: str) -> None:
    command, arguments = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    context = command.make_context("vega3d", arguments)  # parses, and runs nothing
    assert context.params


def test_all_steps_are_there() -> None:
    assert {line.split()[1] for line in COMMANDS} >= {"info", "correspondence", "readout", "sweep", "report"}


@pytest.mark.filterwarnings("ignore::vega3d_plugin.analysis.scoring.AnalysisWarning")
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    small = code.replace("room:0..23?views=12&size=96x160", "room:0..7?views=5&size=24x36")
    small = small.replace("steps=300", "steps=1")
    assert small.count("0..7") == small.count("steps=1") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "choosing_a_prior.md", "exec"), {})
    output = capsys.readouterr().out
    assert "judged on 2 others" in output
    assert "tiny-wan (frame)" in output
    assert (tmp_path / "readout.png").is_file()


def test_figures_that_the_page_quotes_are_those_of_the_code() -> None:
    from vega3d_plugin.analysis.readouts.experiment import MOST_TOKENS
    from vega3d_plugin.analysis.readouts.heads import build_head

    assert f"Maps of more\nthan {MOST_TOKENS} tokens" in PAGE
    width = build_head(8, "small").get_parameter("backbone.input_proj.1.weight").shape[0]
    assert f"linear layer to {width} channels" in PAGE
