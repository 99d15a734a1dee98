"""``vega3d recipes``: what it shows is what is read, copies are right, and every mistake comes with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import UnknownNameError
from vega3d_plugin.recipes.library import RecipeError, examine_recipe, find_recipe, list_recipes, read_recipe

NAME = "qwen_vl/lora_spatial_reasoning"
SMOKE = "qwen_vl/smoke"


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.out, "width", 80)
    monkeypatch.setenv("NO_COLOR", "1")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["recipes", *args])


def ok(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def ok_json(*args: str) -> Any:
    return json.loads(ok(*args, "--json"))


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"extends: {SMOKE}\nprior:\n  tpa: 3\nimages: sene\n")
    return path


def test_every_verb_explains_itself() -> None:
    for verb in ("ls", "show", "cp", "validate"):
        result = run(verb, "--help")
        assert result.exit_code == 0
        assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_ls_is_that_of_vega3d_ls() -> None:
    assert ok("ls") == CliRunner().invoke(app, ["ls", "recipes"]).stdout
    assert [row["name"] for row in ok_json("ls")] == [recipe.name for recipe in list_recipes()]


# show.


def test_show_prints_yaml_that_is_the_recipe(tmp_path: Path) -> None:
    shown = ok("show", SMOKE)
    assert yaml.safe_load(shown) == examine_recipe(SMOKE).values
    assert "extends" not in shown
    path = tmp_path / "again.yaml"
    path.write_text(shown)
    assert read_recipe(path) == read_recipe(SMOKE)
    assert ok_json("show", SMOKE) == examine_recipe(SMOKE).values


def test_show_takes_overrides_and_fills_defaults() -> None:
    values = ok_json("show", SMOKE, "prior.tap=1", "train.learning_rate=1e-5", "lora=null", "tune.language=full")
    assert (values["prior"]["tap"], values["train"]["learning_rate"], values["lora"]) == (1, 1e-5, None)
    assert "seed" not in values["prior"]
    assert ok_json("show", SMOKE, "--defaults") == read_recipe(SMOKE).to_dict()


def test_show_keeps_variables_that_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert "${DATA_ROOT}/train/spar_234k.json" in ok("show", NAME)
    monkeypatch.setenv("DATA_ROOT", "/rows")
    assert "/rows/train/spar_234k.json" in ok("show", NAME)


def test_diff_tells_what_differs() -> None:
    found = ok_json("show", "--diff", NAME, f"{NAME}_no_prior")
    assert found["prior"] == {"second": None}
    assert found["prior.name"] == {"first": "wan2.1-t2v-1.3b"}
    assert found["lora.modules_to_save"] == {"first": ["vega3d"], "second": None}
    assert found["tune.branch"] == {"first": "full", "second": "frozen"}
    assert not [name for name in found if name.split(".")[0] not in ("prior", "lora", "tune")]
    shown = ok("show", "--diff", NAME, f"{NAME}_no_prior")
    row = next(line for line in shown.splitlines() if line.startswith("tune.branch"))
    assert row.split() == ["tune.branch", "full", "frozen"]


def test_diff_of_a_recipe_with_its_overrides() -> None:
    assert ok_json("show", "--diff", SMOKE, SMOKE, "prior.tap=1") == {"prior.tap": {"first": 2, "second": 1}}
    assert ok("show", "--diff", SMOKE, SMOKE) == "No setting differs.\n"


@pytest.mark.parametrize(
    "arguments", [["--diff", SMOKE], [SMOKE, NAME], ["prior.tap=1"], ["--diff", SMOKE, NAME, SMOKE]]
)
def test_a_wrong_number_of_recipes(arguments: list[str]) -> None:
    result = run("show", *arguments)
    assert result.exit_code == 2
    assert "expected, got" in result.output


def test_show_of_a_wrong_recipe_is_its_error(wrong: Path) -> None:
    assert isinstance(run("show", str(wrong)).exception, RecipeError)
    assert isinstance(run("show", "qwen_vl/smok").exception, UnknownNameError)


# cp.


def test_a_copy_is_the_file_and_still_means_the_same(tmp_path: Path) -> None:
    for name in (NAME, SMOKE, f"{NAME}_3b_sd21"):
        target = tmp_path / "mine" / f"{Path(name).name}.yaml"
        assert ok("cp", name, str(target)).strip() == str(target)
        original = find_recipe(name).path
        text = original.read_text().replace("${RECIPE_DIR}", str(original.parent))
        assert target.read_text() == text
        assert examine_recipe(target).values == examine_recipe(name).values
        assert examine_recipe(target).problems == ()


def test_a_flat_copy_extends_nothing(tmp_path: Path) -> None:
    target = tmp_path / "flat.yaml"
    ok("cp", SMOKE, str(target), "--flat")
    assert "extends:" not in target.read_text()
    assert target.read_text().startswith(f"# {find_recipe(SMOKE).summary}\n")
    assert read_recipe(target) == read_recipe(SMOKE)
    assert examine_recipe(target).files == (target,)


def test_a_file_is_replaced_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ok("cp", SMOKE)
    assert (tmp_path / "smoke.yaml").is_file()
    again = run("cp", SMOKE)
    assert again.exit_code == 1
    assert "--force" in str(again.exception)
    (tmp_path / "smoke.yaml").write_text("mine")
    ok("cp", SMOKE, "--force")
    assert (tmp_path / "smoke.yaml").read_text() != "mine"
    assert run("cp", SMOKE, "smoke.txt").exit_code == 2


# validate.


def test_all_shipped_recipes_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    result = run("validate")
    assert result.exit_code == 0, result.output
    names = [line.removeprefix("ok  ") for line in result.stdout.splitlines() if line.startswith("ok")]
    assert names == [recipe.name for recipe in list_recipes()]
    assert "To train, set DATA_ROOT: folder with train/spar_234k.json" in result.output


def test_every_mistake_is_shown_and_the_exit_code_tells(wrong: Path) -> None:
    result = run("validate", str(wrong), SMOKE)
    assert result.exit_code == 1
    assert f"2 settings are wrong in {wrong}" in result.output
    assert "line 3, prior.tpa: unknown key" in result.output
    assert "line 4, images: Input should be" in result.output
    # The right one is told too.
    assert f"ok  {SMOKE}" in result.output


def test_validate_as_json(wrong: Path) -> None:
    result = run("validate", "--json", str(wrong), "train.batch_size=0")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["valid"], row["unset"]) == (False, {})
    found = [(p["file"], p["line"], p["override"], p["setting"]) for p in row["problems"]]
    assert found == [
        (str(wrong), 3, None, "prior.tpa"),
        (str(wrong), 4, None, "images"),
        (None, None, "train.batch_size=0", "train.batch_size"),
    ]


def test_an_unreadable_file_is_one_of_the_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [\n")
    result = run("validate", str(path), SMOKE)
    assert result.exit_code == 1
    assert "cannot be read as YAML" in result.output
    assert f"ok  {SMOKE}" in result.output


def test_a_file_of_ones_own_is_not_copied(wrong: Path) -> None:
    result = run("cp", str(wrong), str(wrong.parent / "other.yaml"))
    assert result.exit_code == 2
    assert not (wrong.parent / "other.yaml").exists()
