"""Recipes: the shipped ones are right and can be used as their header says; wrong ones are told every mistake."""

from __future__ import annotations

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
from vega3d_plugin.errors import SettingsError, UnknownNameError
from vega3d_plugin.recipes import branch_settings, find_recipe, list_recipes, read_recipe
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
        assert read_recipe(recipe).host.adapter == recipe.name.split("/")[0]


def test_a_recipe_is_found_by_name() -> None:
    assert find_recipe(NAME) == find_recipe(f"{NAME}.yaml")
    with pytest.raises(UnknownNameError, match=f"Unknown recipe 'qwen/lora_spatial_resoning'. Did you mean '{NAME}'"):
        find_recipe("qwen/lora_spatial_resoning")


@pytest.mark.parametrize("recipe", [r.name for r in list_recipes()])
def test_every_shipped_recipe_parses(recipe: str) -> None:
    settings = branch_settings(recipe)
    assert type(settings) is vega3d.BranchSettings
    assert settings.prior.context in vega3d.plugin_manager().priors.get(settings.prior.name).contexts


def test_it_has_the_numbers_of_the_experiment() -> None:
    recipe = read_recipe(NAME)
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
    settings, recipe = branch_settings(NAME), read_recipe(NAME)
    assert settings == branch_settings(recipe) == branch_settings(find_recipe(NAME))
    assert set(settings.to_dict()) == set(vega3d.BranchSettings.model_fields)
    assert settings.to_dict() == {key: recipe.to_dict()[key] for key in vega3d.BranchSettings.model_fields}


def test_the_header_names_what_to_fetch_and_no_command_that_is_not_there() -> None:
    from vega3d_plugin.cli.app import app

    text = "\n".join(header(NAME))
    recipe = read_recipe(NAME)
    assert f"hf download {recipe.host.model}" in text
    assert f"hf download {vega3d.plugin_manager().priors.get(recipe.prior.name).source}" in text
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    used = {line.partition("vega3d ")[2].split()[0] for line in text.splitlines() if "`vega3d " in line}
    assert used
    assert used <= verbs


def as_the_header_says(path: Path, model: nn.Module, processor: Any) -> Any:
    """Run the code of the header on a recipe, and return the model it makes."""
    lines = header(NAME)
    first = next(i for i, line in enumerate(lines) if "from peft import" in line)
    last = next(i for i, line in enumerate(lines) if "get_peft_model(model" in line)
    code = "\n".join(line[1:].strip() for line in lines[first : last + 1])
    assert code.count(f'"{NAME}"') == 1
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
    import re

    pattern = read_recipe(NAME).lora["target_modules"]
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


def test_every_mistake_is_reported_at_once(write: Callable[..., Path]) -> None:
    path = write(
        host={"adapter": "qwen_v", "model": "x", "dtyp": "float32"},
        prior={"name": "wan2.1", "tap": "20"},
        lora={"r": 64, "lora_alhpa": 128, "lora_dropout": "5e-2"},
        train={"learning_rate": "1e-5", "batch_size": 0},
        imagse="scene",
    )
    with pytest.raises(SettingsError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"9 settings are wrong in {path}:\n")
    for part in (
        "host.adapter: Unknown host 'qwen_v'. Did you mean 'qwen_vl'?",
        "host.dtyp: unknown key. Did you mean 'dtype'?",
        "prior.name: Unknown prior 'wan2.1'.",
        "prior.tap: Input should be a valid integer, found '20'",
        "lora.lora_alhpa: unknown key. Did you mean 'lora_alpha'",
        "lora.lora_dropout: '5e-2' is text; write the number with a point and without quotes: 0.05",
        "train.learning_rate: Input should be a valid number, found '1e-5'",
        "train.batch_size: Input should be greater than 0, found 0",
        "imagse: unknown key. Did you mean 'images'?",
    ):
        assert part in message


def test_what_peft_refuses_is_told(write: Callable[..., Path]) -> None:
    lora = {"target_modules": "q_proj", "layers_to_transform": [0]}
    with pytest.raises(SettingsError, match=r"PEFT refuses the block `lora` of .*mine.yaml: .*layers_to_transform"):
        read_recipe(write(lora=lora))


def test_blocks_that_may_be_left_out(write: Callable[..., Path]) -> None:
    recipe = read_recipe(write(lora=None, train=None, space=None, images=None))
    assert recipe.lora is None
    assert recipe.train is None
    assert recipe.images == "separate"
    with pytest.raises(SettingsError, match="host: Field required"):
        read_recipe(write(host=None))


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "must be a mapping"), ("a: [", "cannot be read")])
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
