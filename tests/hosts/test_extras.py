"""A package that only some commands need: the commands name what installs it, and doctor says for which it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.hosts import extras

INSTALL = "pip install 'vega3d-plugin[qwen]'"


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers says it where torchvision is not installed."""

    def fails(*_: object, **__: object) -> None:
        raise ImportError("image_processing_qwen2_vl requires the Torchvision library but it was not found\nin your")

    monkeypatch.setattr("vega3d_qwen_vl.tiny.tiny_processor", fails)
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "torchvision" else importlib.util.find_spec(name)
    )


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("words", ["demo --out", "train qwen_vl/smoke --dry-run", "extract qwen_vl/smoke --store"])
def test_a_command_says_what_to_install(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = [] if words.endswith("run") else ["out"]
    result = CliRunner().invoke(app, [*words.split(), *target])
    assert isinstance(result.exception, HostError)
    assert str(result.exception).endswith(f"needs torchvision, which is not installed. Install it first: {INSTALL}")


@pytest.mark.usefixtures("no_torchvision")
def test_doctor_says_for_which_commands_it_is() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert f"The library is installed. For `vega3d demo`, `train` and hosts with videos: {INSTALL}" in result.output
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)["extras"]
    assert {extra["name"]: extra["missing"] for extra in told}["qwen"] == ["torchvision"]
    assert {extra["name"] for extra in told} == set(extras.PURPOSES)


def test_every_extra_for_users_has_packages() -> None:
    assert {name for name, packages in extras._packages().items() if packages} - {"test", "dev"} == set(extras.PURPOSES)


def test_an_import_that_fails_otherwise_is_told_as_it_is() -> None:
    told = "The small host cannot be imported: ImportError: libcudart is missing"
    with pytest.raises(HostError, match=told), extras.installed_first("The small host"):
        raise ImportError("libcudart is missing")
