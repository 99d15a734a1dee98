"""The command line: what it lists is what the library has, it is fast, and its errors are for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.branch.learned_scalars import learned_scalars
from vega3d_plugin.checkpoints.branch_files import write_branch
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.cli import main, output
from vega3d_plugin.cli.app import HELP, app
from vega3d_plugin.contracts.errors import SavedBranchError, was_interrupted
from vega3d_plugin.hosts import installed as environment
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.recipes.library import list_recipes
from vega3d_qwen_vl.tiny import tiny_model

SCRIPT = Path(sys.executable).with_name("vega3d")
KINDS = ("hosts", "priors", "fusers", "plugins", "recipes")


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # A console keeps the width that it found when it was made.
    monkeypatch.setattr(output.out, "width", 80)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("VEGA3D_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh branch in ``fresh``, a trained one in ``branch``, and the latter in a PEFT adapter in ``peft``."""
    root = tmp_path_factory.mktemp("saved")
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        vega3d.patch(model, "tiny-wan", projector={"name": "mlp", "hidden_dim": 64})
    vega3d.save_pretrained(model, root / "fresh")
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.137)
    vega3d.save_pretrained(model, root / "branch")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vega3d"])).save_pretrained(
        root / "peft"
    )
    return root


@pytest.fixture
def broken_plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    error = "entry point bad_package:plugin: ModuleNotFoundError: No module named [bold]bad_package"
    monkeypatch.setitem(vega3d.plugin_manager().broken, "bad_plugin", error)
    return "bad_plugin"


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def run_json(*args: str) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def run_script(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run([SCRIPT, *args], capture_output=True, text=True, timeout=120, env=variables)


def verbs() -> set[str]:
    groups = {str(group.name) for group in app.registered_groups}
    return groups | {command.callback.__name__ for command in app.registered_commands if command.callback}


# Help.


def test_help_teaches() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "a frozen video generator's sense of space" in result.stdout
    for verb in verbs():
        assert f"│ {verb} " in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    # Without arguments it is the same.
    assert run().output.strip() == result.stdout.strip()


def test_the_examples_of_the_help_name_verbs_that_exist() -> None:
    used = {line.split()[1] for line in HELP.splitlines() if line.startswith("  vega3d ")}
    assert used == verbs()


@pytest.mark.parametrize("verb", ["demo", "doctor", "ls", "info", "prior"])
def test_every_verb_explains_itself(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "│ --help" in result.stdout


def test_version() -> None:
    assert run("--version").stdout == f"vega3d-plugin {vega3d.__version__}\n"


LIGHT = """
import sys
from vega3d_plugin.cli import main
for arguments in {calls!r}:
    sys.argv = ["vega3d", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
print("heavy:", [name for name in ("transformers", "diffusers", "peft", "accelerate") if name in sys.modules])
"""


def test_help_and_lists_import_no_heavy_library() -> None:
    calls = [["--help"], ["--version"], ["ls"], ["ls", "--json"], ["doctor", "--help"], ["demo", "--help"]]
    assert heavy(calls) == "[]"


def test_a_heavy_import_would_be_noticed() -> None:
    # Looks at the classes of transformers, so it has to import it.
    assert "transformers" in heavy([["doctor"]])


def heavy(calls: list[list[str]]) -> str:
    code = LIGHT.format(calls=calls)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1].removeprefix("heavy: ")


# ls.


def test_lists_are_those_of_the_library() -> None:
    everything = run_json("ls")
    assert list(everything) == list(KINDS)
    names = {kind: [row["name"] for row in rows] for kind, rows in everything.items()}
    assert names["hosts"] == vega3d.list_hosts()
    assert names["priors"] == vega3d.list_priors()
    assert names["fusers"] == vega3d.list_fusers()
    assert names["plugins"] == sorted(vega3d.plugin_manager().loaded)
    assert names["recipes"] == [recipe.name for recipe in list_recipes()]
    for kind in KINDS:
        assert run_json("ls", kind) == everything[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_stands_whole_in_a_narrow_table(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 60)
    shown = run("ls", kind).stdout
    assert max(len(line) for line in shown.splitlines()) <= 60
    assert "…" not in shown
    for row in run_json("ls", kind):
        assert f"\n{row['name']} " in shown


def test_hosts_tell_their_classes_and_plugin() -> None:
    (row,) = [row for row in run_json("ls", "hosts") if row["name"] == "qwen_vl"]
    assert "Qwen2_5_VLForConditionalGeneration" in row["classes"]
    assert row["plugin"] == "qwen_vl"
    shown = run("ls", "hosts").stdout
    assert all(name in shown for name in row["classes"])


def test_priors_tell_what_a_user_has_to_choose() -> None:
    rows = {row["name"]: row for row in run_json("ls", "priors")}
    wan = rows["wan2.1-t2v-1.3b"]
    assert (wan["feature_dim"], wan["tap"], wan["contexts"]) == (1536, 20, ["frame", "views", "video"])
    assert wan["source"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert rows["tiny-wan"]["source"] == ""
    assert (wan["licence"], wan["presets"], wan["options"]) == ("Apache 2.0", ["released"], [])
    assert wan["parameters"] == vega3d.plugin_manager().priors.get("wan2.1-t2v-1.3b").parameters


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_table_of_many_priors_is_whole_at_every_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(output.out, "width", width)
    shown = run("ls", "priors").stdout
    assert max(len(line) for line in shown.splitlines()) <= width
    rows = run_json("ls", "priors")
    for row, following in zip(rows, [*rows[1:], {"name": "dim:"}], strict=True):
        entry = shown.partition(f"\n{row['name']} ")[2].partition(f"\n{following['name']} ")[0]
        flat = " ".join(entry.split())
        assert row["summary"] in flat
        assert f"licence: {row['licence']}" in flat
        assert row["source"] in entry
        assert str(row["feature_dim"] or "-") in flat
        assert ", ".join(row["contexts"]) in flat
        if width == 120:
            assert entry.count("\n") <= 3
    header = shown.splitlines()[1]
    assert ("contexts" in header, "weights" in header) == (width > 50, width == 120)


def test_a_long_name_of_a_prior_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = vega3d.PriorSpec("somebody-elses-prior-with-a-very-long-name-indeed", print, "a prior")
    monkeypatch.setitem(vega3d.plugin_manager().priors._things, spec.name, spec)
    monkeypatch.setitem(vega3d.plugin_manager().priors._plugins, spec.name, "somebody")
    for width in (60, 80, 120):
        monkeypatch.setattr(output.out, "width", width)
        shown = run("ls", "priors").stdout
        assert f"\n{spec.name} " in shown
        assert max(len(line) for line in shown.splitlines()) <= width


def test_fusers_tell_whether_they_can_start_as_identity() -> None:
    for row in run_json("ls", "fusers"):
        if row["identity_start"]:
            vega3d.build_fuser(row["name"], 16, init="identity")
        else:
            with pytest.raises(vega3d.errors.FusionError, match="cannot start as identity"):
                vega3d.build_fuser(row["name"], 16, init="identity")
        vega3d.build_fuser(row["name"], 16, **row["options"])
        assert row["summary"]
        assert "``" not in row["summary"]


def test_plugins_tell_what_they_registered() -> None:
    rows = {row["name"]: row for row in run_json("ls", "plugins")}
    assert rows["qwen_vl"]["registered"] == {"hosts": ["qwen_vl"]}
    assert rows["qwen_vl"]["source"] == "entry point vega3d_qwen_vl:plugin"
    assert set(rows["builtin_priors"]["registered"]["priors"]) >= {"tiny-wan"}
    assert all(row["error"] is None for row in rows.values())


def test_a_broken_plugin_is_listed_with_its_error_in_red(broken_plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("ls", "plugins")
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert "bad_plugin broken: ModuleNotFoundError: No module named" in flat
    assert "[bold]bad_package" in flat
    (row,) = [row for row in json.loads(run("ls", "plugins", "--json").stdout) if row["name"] == broken_plugin]
    assert row["source"] == "entry point bad_package:plugin"
    assert row["error"].startswith("ModuleNotFoundError")
    # In red, where there is colour.
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(output, "out", Console(force_terminal=True, color_system="standard"))
    assert "\x1b[31mbroken: ModuleNotFoundError" in run("ls", "plugins").stdout


def test_every_other_verb_mentions_it_in_one_line(broken_plugin: str) -> None:
    result = run("ls", "priors")
    assert result.exit_code == 0
    assert result.stderr.strip() == "Not loaded: bad_plugin. `vega3d doctor` says why."


def test_a_kind_that_is_not_there() -> None:
    result = run("ls", "prior")
    assert result.exit_code == 2
    assert "'priors'" in result.output


# info.


def test_info_tells_what_a_saved_branch_holds(saved: Path) -> None:
    result = run("info", str(saved / "branch"))
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    handle = vega3d.get_handle(vega3d.load_pretrained(tiny_model(), saved / "branch"))
    count = sum(p.numel() for p in handle.parameters())
    for line in (
        "host qwen_vl, hidden size 64",
        "prior tiny-wan, features of size 96",
        f"fingerprint {handle.prior.fingerprint}",
        f"written by vega3d-plugin {vega3d.__version__}",
        f"parameters {count:,} in 12 tensors",
        "residual_scale 0.137, started at 0",
        "name: token_gated_residual",
        "size: [96, 160]",
        "projector.mlp.0.weight 64x384 float32 24,576",
    ):
        assert line in lines
    assert max(len(line) for line in result.stdout.splitlines()[1:]) <= 80


def test_info_tells_when_a_branch_was_not_trained(saved: Path) -> None:
    assert "residual_scale  0, as at the start: not trained" in run("info", str(saved / "fresh")).stdout


def test_info_reads_a_peft_adapter(saved: Path) -> None:
    ours, theirs = (run_json("info", str(saved / folder)) for folder in ("branch", "peft"))
    assert ours.pop("where") != theirs.pop("where")
    assert ours == theirs


def test_info_as_json(saved: Path) -> None:
    found = run_json("info", str(saved / "branch"))
    settings = vega3d.BranchSettings.parse(found["settings"])
    assert settings.prior.name == found["prior"]["name"] == "tiny-wan"
    assert found["host"] == {"name": "qwen_vl", "hidden_size": 64, "merge": 2}
    assert found["scalars"] == {"residual_scale": {"value": pytest.approx(0.137), "start": 0.0}}
    assert found["tensors"]["projector.mlp.2.bias"] == {"shape": [64], "dtype": "float32"}
    sizes = [torch.Size(tensor["shape"]).numel() for tensor in found["tensors"].values()]
    assert sum(sizes) == found["parameters"]


def test_info_of_a_branch_whose_fuser_is_not_installed(saved: Path, tmp_path: Path) -> None:
    branch = read_saved(saved / "branch")
    record = json.loads(json.dumps(branch.record).replace('"token_gated_residual"', '"somebody_elses"'))
    write_branch(tmp_path, record, branch.tensors)
    found = run_json("info", str(tmp_path))
    assert found["scalars"] == {"residual_scale": {"value": pytest.approx(0.137), "start": None}}
    assert "residual_scale  0.137\n" in run("info", str(tmp_path)).stdout.replace("  \n", "\n")


def test_the_start_of_a_scalar_is_that_of_its_settings() -> None:
    tensors = {"fuser.residual_scale": torch.tensor([0.4]), "fuser.gate_projection.0.bias": torch.tensor([0.7])}
    fusion = vega3d.FusionSettings(init="released", residual_scale=0.5)
    (scalar,) = learned_scalars(tensors, fusion, 16)
    assert (scalar.name, scalar.start) == ("residual_scale", 0.5)
    assert scalar.value == pytest.approx(0.4)


# doctor without a model; with one, see integration_tests/test_doctor.py.


def test_doctor_tells_versions_plugins_and_what_can_be_patched() -> None:
    import transformers

    result = run("doctor")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"transformers {transformers.__version__} >=4.50" in lines
    assert f"torch {torch.__version__.partition('+')[0]} >=2.4" in lines
    assert f"vega3d-plugin {vega3d.__version__}" in lines
    assert any("Qwen2_5_VLForConditionalGeneration" in line and "not in" not in line for line in lines)
    assert "Everything is in place." in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_doctor_tells_present_classes_from_absent_ones() -> None:
    import transformers

    (host,) = [host for host in run_json("doctor")["hosts"] if host["host"] == "qwen_vl"]
    assert all(hasattr(transformers, name) for name in host["present"])
    assert not any(hasattr(transformers, name) for name in host["absent"])
    adapter = vega3d.plugin_manager().hosts.get("qwen_vl")
    assert sorted(host["present"] + host["absent"]) == sorted(adapter.classes)


def test_doctor_fails_when_a_plugin_is_broken(broken_plugin: str) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    assert "broken: ModuleNotFoundError" in result.stdout
    assert "Something is broken" in result.stdout
    assert json.loads(run("doctor", "--json").stdout)["ok"] is False


@pytest.mark.parametrize("found", [None, "4.40.1"])
def test_doctor_fails_when_a_package_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    real = environment.package_version
    monkeypatch.setattr(environment, "package_version", lambda name: found if name == "transformers" else real(name))
    result = run("doctor")
    assert result.exit_code == 1
    shown = " ".join(result.stdout.split())
    assert f"transformers {found or 'not installed'} >=4.50" in shown


def test_doctor_fails_when_transformers_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = run("doctor")
    assert result.exit_code == 1
    assert "transformers cannot be imported: ModuleNotFoundError" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--branch", "x"], ["--prior", "tiny-wan"], ["x", "--branch", "y", "--prior", "tiny-wan"]]
)
def test_options_that_make_no_sense_together(arguments: list[str]) -> None:
    assert run("doctor", *arguments).exit_code == 2


# Errors.


def test_an_error_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "[bold]outputs" / ("x" * 90)
    done = run_script("info", str(missing))
    assert done.returncode == 1
    assert done.stdout == ""
    # As it was written: brackets are no markup, and a long path is not broken.
    assert done.stderr.startswith(f"Error: The folder {missing} does not exist.")
    assert "Traceback" not in done.stderr


def test_the_traceback_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["vega3d", "info", str(tmp_path / "nothing")])
    with pytest.raises(SavedBranchError) as caught:
        main()
    assert caught.traceback[-1].name == "local_folder"


def test_errors_are_red(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(output, "err", Console(stderr=True, force_terminal=True, color_system="standard"))
    monkeypatch.setattr(sys, "argv", ["vega3d", "doctor", "somewhere", "--prior", "wan2.1-t2v-1.3"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "\x1b[1;31mError: \x1b[0mUnknown prior 'wan2.1-t2v-1.3'. Did you mean 'wan2.1-t2v-1.3b'" in error


def test_what_is_no_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vega3d_plugin.cli.app.app", fail)
    with pytest.raises(ZeroDivisionError):
        main()


def test_json_on_stdout_is_pure() -> None:
    done = run_script("ls", "--json")
    assert done.returncode == 0
    assert list(json.loads(done.stdout)) == list(KINDS)
    assert done.stderr == ""


class _Interrupting(ModuleType):
    """A module that Ctrl-C hits while something is imported from it."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_ctrl_c_during_imports_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "vega3d_plugin.cli.app", _Interrupting("app"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, capsys.readouterr().err) == (130, "Interrupted.\n")


def test_ctrl_c_may_hide_in_an_error_of_an_import() -> None:
    # As transformers tells one that comes while a module of its own is imported.
    error = ModuleNotFoundError("Could not import module")
    error.__cause__ = KeyboardInterrupt()
    assert was_interrupted(error)
    assert not was_interrupted(ModuleNotFoundError("no such module"))


@pytest.mark.parametrize("words", [("recipes", "ls"), ("ls", "recipes"), ("info", "nowhere")])
def test_ctrl_c_in_a_verb_is_one_line(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, name in (("recipes", "list_recipes"), ("ls", "list_recipes"), ("info", "read_saved")):
        monkeypatch.setattr(f"vega3d_plugin.cli.{module}.{name}", interrupted, raising=False)
    monkeypatch.setattr("vega3d_plugin.recipes.library.list_recipes", interrupted)
    monkeypatch.setattr("vega3d_plugin.checkpoints.reading.read_saved", interrupted)
    monkeypatch.setattr(sys, "argv", ["vega3d", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, capsys.readouterr().err) == (130, "Interrupted.\n")
