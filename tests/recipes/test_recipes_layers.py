"""What a recipe extends, what overrides it, and the environment: merged right, or refused with a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vega3d_plugin.recipes.layers import leaves
from vega3d_plugin.recipes.library import RecipeError, branch_settings, examine_recipe, read_recipe
from vega3d_plugin.recipes.yaml import dump, parse_value, read_document

BASE = """\
version: 1
host: {adapter: qwen_vl, model: some/model}
prior: {name: tiny-wan, tap: 2, size: [96, 160]}
lora:
  r: 8
  target_modules: [q_proj]
  modules_to_save: [vega3d]
train: {learning_rate: 1e-4, batch_size: 4}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mine.yaml", base: str | None = BASE) -> Path:
        if base is not None:
            (tmp_path / "base.yaml").write_text(base)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return str(caught.value)


# Numbers and text.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("5e7", 5e7), (".5", 0.5), ("-1.", -1.0), ("3", 3), ("-3", -3), ("010", 10),
        ("0x1f", 31), ("0o17", 15), ("true", True), ("False", False), ("null", None), ("~", None), ("no", "no"),
        ("on", "on"), ("1_000", "1_000"), ("12:30", "12:30"), ("2026-01-01", "2026-01-01"), ("'1e-4'", "1e-4"),
        ("e5", "e5"), ("a\\.b", "a\\.b"), ("[480, 832]", [480, 832]), ("{r: 8, bias: none}", {"r": 8, "bias": "none"}),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_infinite_numbers_are_read_and_refused(write: Write) -> None:
    assert parse_value(".inf") == float("inf")
    message = mistakes(write("extends: ./base.yaml\ntrain: {learning_rate: .inf}"))
    assert "line 2, train.learning_rate: Input should be a finite number" in message


@pytest.mark.parametrize(
    "value", [{"a": ["1e-4", "no", "010", "null", "1.5", 1e-4, 5e7, None, True], "b": {"c": {}, "d": [[1], []]}}]
)
def test_what_is_written_is_read_again(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "written.yaml"
    path.write_text(dump(value))
    assert read_document(path).values == value


def test_a_key_that_is_there_twice(write: Write) -> None:
    message = mistakes(write("extends: ./base.yaml\nimages: scene\nimages: separate\nprior:\n  tap: 1\n  tap: 2\n"))
    assert "line 3, images: is there twice, first in line 2" in message
    assert "line 6, prior.tap: is there twice, first in line 5" in message


def test_anchors_and_tags_are_refused(write: Write, tmp_path: Path) -> None:
    assert "line 2: cannot be read as YAML: anchors and aliases" in mistakes(write("a: &a [1]\nb: [*a, *a]\n"))
    evil = f"extends: ./base.yaml\nimages: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]\n"
    assert "line 2, images: cannot be read: the tag" in mistakes(write(evil))
    assert not (tmp_path / "touched").exists()


# extends.


def test_mappings_are_merged_and_the_rest_is_replaced(write: Write) -> None:
    path = write("extends: ./base.yaml\nprior: {tap: 1, size: [64, 64]}\nlora: {r: 16}\ntrain: null\n")
    recipe = read_recipe(path)
    assert recipe.prior is not None
    assert (recipe.prior.name, recipe.prior.tap, recipe.prior.size) == ("tiny-wan", 1, (64, 64))
    assert recipe.lora == {"r": 16, "target_modules": ["q_proj"], "modules_to_save": ["vega3d"]}
    assert recipe.train is None
    assert recipe.host.model == "some/model"


def test_a_recipe_of_the_library_and_a_folder_above_can_be_extended(write: Write) -> None:
    path = write("extends: ../base.yaml\nhost: {model: other/model}\n", "below/mine.yaml")
    assert read_recipe(path).host.model == "other/model"
    named = write("extends: qwen_vl/smoke\nprior: {tap: 1}\n")
    recipe = read_recipe(named)
    assert (recipe.host.model, recipe.prior.tap if recipe.prior else None) == ("tiny", 1)
    assert examine_recipe(named).files[0] == named
    assert [path.stem for path in examine_recipe(named).files[1:]] == ["smoke", "lora_spatial_reasoning"]


def test_a_mistake_is_told_where_it_stands(write: Write, tmp_path: Path) -> None:
    base = BASE.replace("tap: 2", "tapp: 2").replace("r: 8", "r: 0")
    message = mistakes(write("extends: ./base.yaml\nimages: sene\n", base=base))
    assert "  line 2, images: Input should be" in message
    assert f"  {tmp_path / 'base.yaml'} line 3, prior.tapp: unknown key" in message
    assert f"  {tmp_path / 'base.yaml'} line 5, lora.r: Input should be greater than 0" in message
    # What the recipe itself replaces is no mistake any more.
    assert read_recipe(write("extends: ./base.yaml\nprior: null\nlora: null\n", base=base)).prior is None


def test_circles_are_reported(write: Write, tmp_path: Path) -> None:
    write("extends: ./third.yaml\n", "second.yaml", base=None)
    write("version: 1\nextends: ./first.yaml\n", "third.yaml", base=None)
    first = write("extends: ./second.yaml\n", "first.yaml", base=None)
    message = mistakes(first)
    assert "recipes extend each other in a circle" in message
    assert " -> ".join(f"{tmp_path / name}.yaml" for name in ("first", "second", "third", "first")) in message
    assert "in a circle" in mistakes(write("extends: ./mine.yaml\n"))


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("./nothing.yaml", "line 1, extends: there is no file"),
        ("qwen_vl/smok", "Unknown recipe 'qwen_vl/smok'. Did you mean 'qwen_vl/smoke'"),
        ("[a, b]", "must be the name of a recipe or a relative path, found ['a', 'b']"),
        ("${HOME}/x.yaml", "takes no variables"),
    ],
)
def test_what_cannot_be_extended(write: Write, extends: str, message: str) -> None:
    assert message in mistakes(write(f"extends: {extends}\n"))


def test_a_newer_version_is_refused_at_once(write: Write) -> None:
    message = mistakes(write("version: 2\nhots: {}\n"))
    assert message.startswith("1 setting is wrong")
    assert "line 1, version: the recipe is of version 2, this vega3d-plugin" in message
    assert "Install a newer vega3d-plugin" in message
    assert "is of version 7" in mistakes(write("extends: ./base.yaml\n", base="version: 7\n"))
    assert "line 1, version: Input should be a valid integer" in mistakes(write("version: '1'\nextends: ./base.yaml\n"))


# Overrides.


def test_overrides_replace_what_they_name(write: Write) -> None:
    path = write("extends: ./base.yaml\n")
    overrides = ("prior.tap=1", "train.learning_rate=1e-5", "lora=null", "host.model=a=b", "images=scene")
    recipe = read_recipe(path, (*overrides, "projector.name=avg", "prior.size=[64, 96]"))
    assert recipe.prior is not None
    assert recipe.train is not None
    assert (recipe.prior.tap, recipe.prior.size, recipe.prior.name) == (1, (64, 96), "tiny-wan")
    assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.lora) == (1e-5, 4, None)
    assert (recipe.host.model, recipe.images, recipe.projector.name) == ("a=b", "scene", "avg")
    # A whole block is replaced, not merged.
    assert read_recipe(path, ["prior={name: tiny-wan}"]).prior.tap is None  # type: ignore[union-attr]
    assert branch_settings(path, ["prior.tap=0"]).prior.tap == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prior.tap", "override `prior.tap`: an override is a setting, `=` and a value"),
        ("=3", "an override is a setting"),
        ("prior..tap=3", "an override is a setting"),
        ("lora=", "has no value; to take a setting away write `lora=null`"),
        ("extends=x", "`extends` cannot be overridden"),
        ("prior.tap.deep=3", "`prior.tap` is 2, which has no `deep`; give it whole: `prior.tap=...`"),
        ("prior.size.0=3", "`prior.size` is [96, 160], which has no `0`"),
        ("prior.size=[1", "cannot be read as YAML"),
        ("prior.tpa=3", "override `prior.tpa=3`, prior.tpa: unknown key. Did you mean 'tap'"),
        ("train.batch_size=x", "override `train.batch_size=x`, train.batch_size: Input should be a valid integer"),
        # Not the line of what it replaces.
        ("prior={name: tiny-wan, tap: x}", "override `prior={name: tiny-wan, tap: x}`, prior.tap: Input should be"),
        ("version=2", "override `version=2`, version: Input should be less than or equal to 1"),
    ],
)
def test_wrong_overrides(write: Write, override: str, message: str) -> None:
    assert message in mistakes(write("extends: ./base.yaml\n"), override)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("prior=null", "prior.name=tiny-wan", "override `prior=null` turns the whole of `prior` off"),
        ("lora=null", "lora.r=8", "override `lora=null` turns the whole of `lora` off"),
    ],
)
def test_overrides_that_contradict_each_other(write: Write, first: str, second: str, message: str) -> None:
    found = mistakes(write("extends: ./base.yaml\n"), first, second)
    assert f"override `{second}`: " in found
    assert message in found
    assert "Remove one of the two" in found


def test_of_two_overrides_the_later_one_wins(write: Write) -> None:
    path = write("extends: ./base.yaml\n")
    assert read_recipe(path, ["prior.tap=1", "prior.tap=2"]).prior.tap == 2  # type: ignore[union-attr]
    assert read_recipe(path, ["prior={name: tiny-wan}", "prior.tap=1"]).prior.tap == 1  # type: ignore[union-attr]
    assert read_recipe(path, ["prior.tap=1", "prior=null"]).prior is None
    # Turned on again as a whole, and a block that the recipe itself turns off.
    assert read_recipe(path, ["prior=null", "prior={name: tiny-wan}", "prior.tap=1"]).prior.tap == 1  # type: ignore[union-attr]
    off = write("extends: ./base.yaml\nprior: null\nlora: null\n")
    assert read_recipe(off, ["prior.name=tiny-wan"]).prior is not None


# The environment.

WITH_ENV = """\
extends: ./base.yaml
env:
  ROOT: where the rows are
data:
  files: ["${ROOT}/a.json", "${ROOT}/b.json"]
"""


def test_declared_variables_are_put_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/rows")
    recipe = read_recipe(write(WITH_ENV))
    assert recipe.data is not None
    assert recipe.data.files == ("/rows/a.json", "/rows/b.json")
    assert recipe.env == {"ROOT": "where the rows are"}


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set(write: Write, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("ROOT", value)
    path = write(WITH_ENV)
    message = mistakes(path)
    needs = "needs the environment variable ROOT, which is not set: where the rows are. Set it (`export ROOT=...`)"
    assert f"line 5, data.files.0: {needs}" in message
    # Whoever uses other parts alone does not need it.
    assert read_recipe(path, blocks=("prior",)).data.files[0] == "${ROOT}/a.json"  # type: ignore[union-attr]
    assert branch_settings(path).prior.tap == 2
    assert read_recipe(path, ["data=null"]).data is None
    examined = examine_recipe(path)
    assert (examined.problems, examined.unset) == ((), {"ROOT": "where the rows are"})
    # But a branch that needs it does.
    with pytest.raises(RecipeError, match=r"override .*, prior.pretrained: needs the environment variable ROOT"):
        branch_settings(path, ["prior.pretrained=${ROOT}/wan"])


def test_an_undeclared_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value")
    path = write("extends: ./base.yaml\nhost: {model: '${SECRET}/x'}\nlora: {target_modules: ['${}']}\n")
    message = mistakes(path)
    assert (
        "line 2, host.model: uses ${SECRET}, which the recipe does not declare. Declare it: `env: {SECRET:" in message
    )
    assert "line 3, lora.target_modules.0: uses ${}, which the recipe does not declare" in message
    assert "value" not in message.replace("a value", "")
    assert examine_recipe(path).problems


def test_declarations_are_checked(write: Write) -> None:
    message = mistakes(write("extends: ./base.yaml\nenv:\n  'NOT-A-NAME': x\n  EMPTY: null\n"))
    assert "env.NOT-A-NAME" in message
    assert "line 4, env.EMPTY: Input should be a valid string" in message


def test_the_folder_is_that_of_the_file_which_names_it(write: Write, tmp_path: Path) -> None:
    base = BASE.replace("some/model", "'${RECIPE_DIR}/model'")
    path = write("extends: ../base.yaml\nprior: {pretrained: '${RECIPE_DIR}/wan'}\n", "below/mine.yaml", base=base)
    recipe = read_recipe(path)
    assert recipe.host.model == f"{tmp_path}/model"
    assert recipe.prior is not None
    assert recipe.prior.pretrained == f"{tmp_path}/below/wan"


# Blocks that have to fit each other.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {modules_to_save: null}", "line 2, lora.modules_to_save: must name 'vega3d': PEFT freezes and forgets"),
        ("tune: {language: full}", "line 4, lora: no part trains by LoRA"),
        ("lora: null\ntune: {vision: lora}", "line 3, tune.vision: is to train by LoRA, but the recipe has no block"),
        ("fusion: {name: token_gated}", "fusion.init: fuser 'token_gated' cannot start as identity. Write `init:"),
        ("prior: {name: sd2.1, tap: null, context: views}", "line 2, prior: Prior 'sd2.1' has no context 'views'"),
        ("prior: {preset: relesed}", "prior: Prior 'tiny-wan' has no preset 'relesed'"),
        ("prior: {name: wan2.1-vace-1.3b, referense: none}", "line 2, prior.referense: unknown key. Did you mean"),
        ("train: {per_device_batch_size: 3}", "batch_size 4 is not a multiple of per_device_batch_size 3"),
        ("lora: {bias: some}", "line 2, lora.bias: Input should be 'none', 'all' or 'lora_only', found 'some'"),
        ("lora: {target_modules: 3}", "line 2, lora.target_modules: Input should be a valid list, found 3; or "),
    ],
)
def test_blocks_that_do_not_fit(write: Write, text: str, message: str) -> None:
    found = mistakes(write(f"extends: ./base.yaml\n{text}\n"))
    assert message in found
    assert found.startswith("1 setting is wrong")


def test_a_blocks_own_rule_is_told_beside_its_wrong_settings(write: Write) -> None:
    text = "extends: ./base.yaml\ntrain: {per_device_batch_size: 3, shedule: cosine, max_steps: 0}\n"
    message = mistakes(write(text))
    assert message.startswith("3 settings are wrong")
    assert "batch_size 4 is not a multiple of per_device_batch_size 3" in message


def test_a_rule_is_not_told_where_a_wrong_setting_may_be_the_cause(write: Write) -> None:
    # Without `schedule` the two would not go together, but it is only misspelt.
    message = mistakes(write("extends: ./base.yaml\ntrain: {schedule: stepp, decay_steps: 10}\n"))
    assert message.startswith("1 setting is wrong")
    assert "train.schedule: Input should be" in message


def test_a_scale_may_be_a_fraction(write: Write) -> None:
    recipe = read_recipe(write("extends: ./base.yaml\nlora: {lora_alpha: 22.6}\n"))
    assert recipe.lora is not None
    assert recipe.lora["lora_alpha"] == 22.6


def test_leaves_are_named_as_overrides_name_them() -> None:
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": [1]})) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_prior_null_is_one_switch(write: Write) -> None:
    text = "extends: ./base.yaml\ntune: {branch: {mode: full, learning_rate: 1e-3}}\n"
    alone = read_recipe(write(text, base=BASE), ["prior=null"])
    assert (alone.prior, alone.lora) == (None, {"r": 8, "target_modules": ["q_proj"], "modules_to_save": None})
    assert alone.tune is not None
    assert alone.tune.branch.mode == "frozen"
    kept = read_recipe(write(text, base=BASE), ["prior=null", "lora.modules_to_save=[lm_head, vega3d]"])
    assert kept.lora is not None
    assert kept.lora["modules_to_save"] == ["lm_head"]


def test_settings_that_clash_say_where_each_was_written(write: Write, tmp_path: Path) -> None:
    base = BASE + "data: {files: a.json, sampling: fps, fps: 0.5}\n"
    told = mistakes(write("extends: ./base.yaml\ndata:\n  sampling: uniform\n", base=base))
    assert "`fps` is for `sampling: fps` alone, and `sampling` is uniform. `fps: null` removes it" in told
    assert f"(`sampling`: line 3, `fps`: inherited from {tmp_path / 'base.yaml'}, line 9)" in told
    told = mistakes(tmp_path / "base.yaml", "data.sampling=uniform")
    assert "(`sampling`: override `data.sampling=uniform`, `fps`: line 9)" in told
    assert "inherited" not in mistakes(write(base.replace("sampling: fps", "sampling: uniform"), base=None))
    fixed = write("extends: ./base.yaml\ndata: {sampling: uniform, fps: null}\n", base=base)
    assert read_recipe(fixed).data is not None
