"""Recipes: the shipped ones are right and can be used as their header says; wrong ones are told every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import vega3d
from vega3d_plugin.contracts.errors import SettingsError, UnknownNameError
from vega3d_plugin.evaluation.harness_host import HostArguments
from vega3d_plugin.recipes.library import (
    RecipeError,
    RecipeSettings,
    branch_settings,
    examine_recipe,
    find_recipe,
    list_recipes,
    read_recipe,
)
from vega3d_plugin.recipes.yaml import parse_value
from vega3d_plugin.training.model.building import check_host
from vega3d_qwen_vl.tiny import available_families, tiny_model, tiny_processor

NAME = "qwen_vl/lora_spatial_reasoning"
TINY = {
    "prior": {"name": "tiny-wan", "context": "views", "tap": 2, "size": [96, 160]},
    "projector": {"name": "mlp", "hidden_dim": 64},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of the shipped recipe with other blocks; a block that is None is left out."""

    def write(**blocks: Any) -> Path:
        values = {**yaml.safe_load(find_recipe(NAME).path.read_text()), **blocks}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return path

    return write


def header(name: str) -> list[str]:
    lines = find_recipe(name).path.read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def test_the_shipped_recipes_are_listed() -> None:
    recipes = list_recipes()
    assert NAME in [recipe.name for recipe in recipes]
    for recipe in recipes:
        assert recipe.path.is_file()
        assert recipe.name == f"{recipe.path.parent.name}/{recipe.path.stem}"
        assert recipe.path.read_text().startswith(f"# {recipe.summary}\n")
        assert len(recipe.summary) > 20


def test_every_folder_is_named_after_a_host() -> None:
    assert {recipe.name.split("/")[0] for recipe in list_recipes()} <= set(vega3d.list_hosts())
    for recipe in list_recipes():
        folder, adapter = recipe.name.split("/")[0], read_recipe(recipe, blocks=()).host.adapter
        # LLaVA comes in two sets of classes, each a host of its own.
        assert adapter == folder or (folder, adapter) == ("llava_video", "llava_transformers")


def test_a_recipe_is_found_by_name() -> None:
    assert find_recipe(NAME) == find_recipe(f"{NAME}.yaml")
    with pytest.raises(UnknownNameError, match=f"Unknown recipe 'qwen/lora_spatial_resoning'. Did you mean '{NAME}'"):
        find_recipe("qwen/lora_spatial_resoning")


def test_a_file_with_a_slip_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("version: 1\n")
    for slip in ("mine", "mine.yml"):
        with pytest.raises(UnknownNameError) as caught:
            read_recipe(slip)
        assert "Did you mean 'mine.yaml'" in str(caught.value)
        assert f"there is no file {tmp_path / slip}" in str(caught.value)


ALL = [r.name for r in list_recipes()]


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_recipe_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine_recipe(name)
    assert found.problems == ()
    for variable in found.unset:
        monkeypatch.setenv(variable, "/data")
    settings = read_recipe(name)
    assert settings.version == 1
    assert "${" not in str(settings.to_dict())
    if settings.prior is None:
        with pytest.raises(SettingsError, match="trains the host without a branch"):
            branch_settings(name)
    else:
        branch = branch_settings(name)
        assert type(branch) is vega3d.BranchSettings
        assert branch.prior == settings.prior
        assert settings.lora is None or settings.lora["modules_to_save"] == ["vega3d"]


@pytest.mark.parametrize("name", ALL)
def test_every_header_has_the_commands(name: str) -> None:
    lines = header(name)
    assert all(any(line.startswith(f"# {what}:") for line in lines) for what in ("fetch", "train", "eval"))
    text = "\n".join(lines)
    host = read_recipe(name, blocks=()).host.model
    assert host == "tiny" or f"hf download {host}" in text
    prior = read_recipe(name, blocks=()).prior
    source = vega3d.plugin_manager().priors.get(prior.name).source if prior else ""
    assert not source or f"hf download {source}" in text
    # Every recipe that a header speaks of is there; two repositories on the hub look like one.
    spoken = set(re.findall(r"(?<![\w/])((?:qwen_vl|llava_video|openvla)/\w+)", text))
    assert spoken - {"openvla/openvla", "openvla/modified_libero_rlds"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_commands_of_a_header_fit_their_recipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    text = "\n".join(line.removeprefix("#") for line in header(name)).replace("\\\n", " ")
    for line in text.splitlines():
        found = re.search(r"(?:vega3d train|-m vega3d_plugin\.train|vega3d recipes show --diff) (.+)", line)
        words = found[1].split() if found else []
        overrides = [word for word in words if "=" in word]
        for recipe in (word for word in words if "=" not in word):
            assert examine_recipe(recipe, overrides).problems == (), line
        if found and "train" in found[0].split()[1]:
            # What is told to be trained can be.
            check_host(read_recipe(words[0], overrides).host)
        for arguments in re.findall(r"--model vega3d .*--model_args (\S+)", line):
            HostArguments.parse({k: parse_value(v) for k, v in (each.split("=") for each in arguments.split(","))})


def test_commands_with_rows_of_ones_own_need_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    root = Path(__file__).parents[2]
    pages = [*root.glob("docs/*.md"), *root.glob("vega3d_plugin/cli/*.py")]
    commands = [c for page in pages for c in re.findall(r"vega3d train (\S+/\S+)((?: [\w.]+=\S+)+)", page.read_text())]
    own = [(name, overrides.split()) for name, overrides in commands if "data.files=" in overrides]
    assert own
    for name, overrides in own:
        found = examine_recipe(name, overrides)
        assert (found.problems, found.unset) == ((), {}), name


def test_what_each_host_has() -> None:
    for host, task in {"qwen_vl": "spatial_reasoning", "llava_video": "scene_understanding"}.items():
        assert {f"{host}/lora_{task}", f"{host}/full_{task}", f"{host}/lora_{task}_no_prior", f"{host}/smoke"} <= set(
            ALL
        )
    # OFT trains by LoRA alone, so what was published is a LoRA too.
    names = ("lora_libero", "released_libero", "lora_libero_no_prior", "smoke")
    assert {f"openvla/{name}" for name in names} <= set(ALL)
    for kind in ("lora", "full"):
        for size in ("", "_3b"):
            for prior in ("", "_vace", "_sd21"):
                assert f"qwen_vl/{kind}_spatial_reasoning{size}{prior}" in ALL


@pytest.mark.parametrize("name", [n for n in ALL if n.endswith("_no_prior") and "/lora" in n])
def test_an_ablation_differs_in_the_branch_alone(name: str) -> None:
    with_branch = examine_recipe(name.removesuffix("_no_prior")).values
    without = examine_recipe(name).values
    assert without.pop("prior") is None
    assert with_branch.pop("prior") is not None
    assert with_branch["lora"].pop("modules_to_save") == ["vega3d"]
    assert without["lora"].pop("modules_to_save") is None
    assert (with_branch["tune"].pop("branch"), without["tune"].pop("branch")) == ("full", "frozen")
    assert without == with_branch


def test_full_tuning_of_qwen_is_as_released() -> None:
    recipe = read_recipe("qwen_vl/full_spatial_reasoning", blocks=())
    prior = recipe.prior
    assert prior is not None
    assert (prior.tap, prior.context, prior.preset, prior.size) == (-1, "frame", "released", (480, 832))
    assert (recipe.projector.name, recipe.projector.hidden_dim, recipe.space) == ("mlp", 4096, "bilinear")
    assert (recipe.fusion.name, recipe.fusion.init, recipe.fusion.residual_scale) == (
        "token_gated_residual", "released", 0.2,
    )  # fmt: skip
    assert (recipe.lora, recipe.images) == (None, "separate")
    assert modes(recipe) == {"vision": "frozen", "projector": "frozen", "language": "full", "branch": "full"}
    assert recipe.train is not None
    assert recipe.train.deepspeed["zero_optimization"]["stage"] == 2


def test_full_tuning_of_llava_is_as_released() -> None:
    recipe = read_recipe("llava_video/full_scene_understanding", blocks=())
    prior, train, tune = recipe.prior, recipe.train, recipe.tune
    assert prior is not None
    assert (prior.name, prior.tap, prior.context, prior.size) == ("wan2.1-t2v-1.3b", 20, "frame", (720, 1280))
    assert (prior.timestep, prior.shift, prior.preset) == (300, 5.0, "released")
    assert prior.resize == "crop"
    assert (recipe.projector.name, recipe.space) == ("mlp2x_gelu", "adaptive_avg")
    assert (recipe.fusion.name, recipe.fusion.init) == ("token_gated", "released")
    assert modes(recipe) == dict.fromkeys(("vision", "projector", "language", "branch"), "full")
    assert train is not None
    assert tune is not None
    assert tune.vision.learning_rate == 2e-6
    assert (train.learning_rate, train.batch_size, train.max_length) == (1e-5, 128, 32768)
    assert (train.weight_decay, train.warmup_ratio, train.schedule) == (0, 0.03, "cosine")
    assert train.deepspeed["zero_optimization"]["stage"] == 3
    assert recipe.data is not None
    assert recipe.data.frames == 32


@pytest.mark.parametrize("name", ["openvla/lora_libero", "openvla/released_libero"])
def test_openvla_trains_as_oft_does(name: str) -> None:
    recipe = read_recipe(name)
    lora, train = recipe.lora, recipe.train
    assert lora is not None
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (32, 16, 0)
    assert (lora["target_modules"], lora["init_lora_weights"]) == ("all-linear", "gaussian")
    assert train is not None
    assert (train.learning_rate, train.schedule, train.decay_steps, train.decay_factor) == (5e-4, "step", 100000, 0.1)
    assert (train.batch_size, train.per_device_batch_size, train.max_steps) == (64, 8, 150005)


def modes(recipe: RecipeSettings) -> dict[str, str]:
    assert recipe.tune is not None
    return {name: part.mode for name, part in recipe.tune.parts(recipe.lora is not None).items()}


@pytest.mark.parametrize("name", [n for n in ALL if n.endswith("/smoke")])
def test_smoke_recipes_need_nothing_from_outside(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.host.model == "tiny"
    assert recipe.prior is not None
    assert recipe.prior.name == "tiny-wan"
    if recipe.data is not None:
        (rows,) = recipe.data.files
        for row in json.loads(Path(rows).read_text()):
            media = row.get("image") or row["video"]
            for file in [media] if isinstance(media, str) else media:
                assert Image.open(Path(rows).parent / file).size == (64, 64)


def test_it_has_the_numbers_of_the_experiment() -> None:
    recipe = read_recipe(NAME, blocks=())
    assert (recipe.host.model, recipe.host.dtype) == ("Qwen/Qwen2.5-VL-7B-Instruct", "bfloat16")
    assert (recipe.host.min_pixels, recipe.host.max_pixels) == (16 * 28 * 28, 576 * 28 * 28)
    prior = recipe.prior
    assert (prior.name, prior.timestep, prior.shift, prior.tap) == ("wan2.1-t2v-1.3b", 300, 5.0, 20)
    assert (prior.size, prior.context, recipe.images, recipe.space) == ((480, 832), "views", "scene", "bilinear")
    assert (recipe.fusion.name, recipe.fusion.init) == ("token_gated_residual", "identity")
    assert (recipe.projector.name, recipe.projector.hidden_dim) == ("mlp", 4096)
    train = recipe.train
    assert train is not None
    assert (train.learning_rate, train.schedule, train.warmup_ratio, train.weight_decay) == (1e-5, "cosine", 0.03, 0.01)
    assert (train.batch_size, train.epochs, train.max_length) == (64, 1, 12800)


def test_branch_settings_leave_the_rest_out() -> None:
    settings, recipe = branch_settings(NAME), read_recipe(NAME, blocks=())
    assert settings == branch_settings(recipe) == branch_settings(find_recipe(NAME))
    assert set(settings.to_dict()) == set(vega3d.BranchSettings.model_fields)
    assert settings.to_dict() == {key: recipe.to_dict()[key] for key in vega3d.BranchSettings.model_fields}


def as_the_header_says(path: Path, model: nn.Module, processor: Any) -> Any:
    """Run the code of the header on a recipe, and return the model it makes."""
    lines = header(NAME)
    first = next(i for i, line in enumerate(lines) if "from peft import" in line)
    last = next(i for i, line in enumerate(lines) if "get_peft_model(model" in line)
    code = "\n".join(line[1:].strip() for line in lines[first : last + 1])
    assert code.count(f'"{NAME}"') == 2
    names = {"model": model, "processor": processor}
    exec(code.replace(f'"{NAME}"', repr(str(path))), names)
    return names["model"]


@pytest.mark.parametrize("family", [f for f in ("qwen2_5_vl", "qwen2_vl", "qwen3_vl") if f in available_families()])
def test_lora_lands_on_the_language_model_alone(family: str, write: Callable[..., Path]) -> None:
    processor = tiny_processor(family)
    model = as_the_header_says(write(**TINY), tiny_model(family, layers=2), processor)
    lora = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert len(lora) == 2 * 4
    assert {name.rpartition(".")[2] for name in lora} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(".layers." in name and "visual" not in name for name in lora)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".vega3d." in name for name in trained)

    branch = vega3d.get_handle(model).branch
    assert branch.settings.images == "scene"
    assert branch.prior.settings.context == "views"
    assert all(p.requires_grad for p in branch.parameters())
    # Two steps: at the start the residual scale is zero, so only it has a gradient.
    before = [p.detach().clone() for p in branch.parameters()]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    batch = two_views(processor)
    for _ in range(2):
        model.train()(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(old, new) for old, new in zip(before, branch.parameters(), strict=True))


def two_views(processor: Any) -> dict[str, Any]:
    pictures = [Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)) for value in (40, 200)]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Left or right?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[text], images=pictures, return_tensors="pt"))


def test_the_two_layouts_of_names_are_both_hit_and_the_vision_tower_is_not() -> None:
    """Whatever transformers is installed: the pattern is checked on names of either layout."""
    pattern = read_recipe(NAME, blocks=()).lora["target_modules"]
    hit = [
        "model.language_model.layers.3.self_attn.q_proj",  # transformers 4.52 and later
        "model.layers.27.self_attn.o_proj",  # before
    ]
    missed = [
        "visual.blocks.0.attn.qkv",
        "visual.blocks.0.attn.q_proj",
        "model.visual.layers.0.self_attn.q_proj",
        "model.visual.vega3d.layers.0.self_attn.q_proj",
        "model.language_model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.q_proj.base_layer",
        "draft.model.layers.0.self_attn.q_proj",
    ]
    assert all(re.fullmatch(pattern, name) for name in hit)
    assert not [name for name in missed if re.fullmatch(pattern, name)]


TEN = """\
version: 1
extends: qwen_vl/lora_spatial_reasoning
host: {adapter: qwen_v, dtyp: float32}
prior:
  name: wan2.1
  tap: "20"
  context: vews
lora:
  lora_alhpa: 128
  lora_dropout: five
train:
  learning_rate: "1e-5"
  batch_size: 0
imagse: scene
"""


def test_ten_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEN)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, blocks=())
    message = str(caught.value)
    assert message.startswith(f"10 settings are wrong in {path}:\n")
    for part in (
        "line 3, host.adapter: Unknown host 'qwen_v'. Did you mean 'qwen_vl'?",
        "line 3, host.dtyp: unknown key. Did you mean 'dtype'?",
        "line 5, prior.name: Unknown prior 'wan2.1'.",
        "line 6, prior.tap: Input should be a valid integer, found '20'",
        "line 7, prior.context: Input should be 'frame', 'views' or 'video', found 'vews'",
        "line 9, lora.lora_alhpa: unknown key. Did you mean 'lora_alpha'",
        "line 10, lora.lora_dropout: Input should be a valid number, found 'five'",
        "line 12, train.learning_rate: Input should be a valid number, found '1e-5'",
        "line 13, train.batch_size: Input should be greater than 0, found 0",
        "line 14, imagse: unknown key. Did you mean 'images'?",
    ):
        assert f"  {part}" in message
    assert [problem.place.line for problem in caught.value.problems] == [3, 3, 5, 6, 7, 9, 10, 12, 13, 14]


def test_what_peft_refuses_is_told(write: Callable[..., Path]) -> None:
    lora = {"target_modules": "q_proj", "layers_to_transform": [0], "modules_to_save": ["vega3d"]}
    with pytest.raises(SettingsError, match=r"line \d+, lora: PEFT refuses the block: .*layers_to_transform"):
        read_recipe(write(lora=lora), blocks=())


def test_blocks_that_may_be_left_out(write: Callable[..., Path]) -> None:
    recipe = read_recipe(write(lora=None, train=None, space=None, images=None, data=None, tune=None))
    assert (recipe.lora, recipe.train, recipe.data, recipe.tune) == (None, None, None, None)
    assert recipe.images == "separate"
    with pytest.raises(SettingsError, match="host: the block is missing"):
        read_recipe(write(host=None), blocks=())


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "line 1: must be a mapping"), ("b: 1\na: [", "line 2: cannot be read")]
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_recipe(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        read_recipe(tmp_path / "nothing.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"host: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_recipe(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "file", [*(r.path for r in list_recipes()), *(Path(__file__).parents[2] / "docs").glob("*.md")]
)
def test_commands_have_no_placeholder_for_a_script(file: Path) -> None:
    assert "EVAL_SCRIPT" not in file.read_text(encoding="utf-8")
