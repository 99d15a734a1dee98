"""What a LoRA pattern hits: exactly what PEFT would, and an error where that is nothing, the branch or the prior."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

import vega3d
from vega3d_plugin.recipes import LoraTargetError, check_lora_targets, read_recipe
from vega3d_qwen_vl.tiny import tiny_model


def patched() -> Any:
    return vega3d.patch(tiny_model(layers=2), "tiny-wan", projector={"name": "mlp", "hidden_dim": 64})


@pytest.mark.parametrize(
    "lora",
    [
        read_recipe("qwen_vl/smoke").lora,
        {"target_modules": "all-linear", "modules_to_save": ["vega3d"]},
        {"target_modules": ["q_proj", "qkv"], "exclude_modules": ["blocks.0.attn.qkv"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.mlp\.(up|down)_proj"},
    ],
)
@pytest.mark.parametrize("branch", [True, False])
def test_what_is_found_is_what_peft_adapts(lora: dict[str, Any], branch: bool) -> None:
    model = patched() if branch else tiny_model(layers=2)
    state = set(model.state_dict())
    found = check_lora_targets(model, lora)
    assert set(model.state_dict()) == state
    adapted = get_peft_model(model, LoraConfig(**lora))
    prefix, suffix = "base_model.model.", ".lora_A"
    names = {n[len(prefix) : -len(suffix)] for n, _ in adapted.named_modules() if n.endswith(suffix)}
    assert set(found) == names
    assert found


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj", "'q_proj' matches no module of Qwen2_5_VL.* a text is a regular expression for whole names"),
        (["q_prok"], r"matches no module .* Did you mean 'q_proj'.* linear layers end in: .*q_proj \(2\)"),
        (["attn1.to_q"], r"matches no module .* It matches \d+ modules \(.*attn1.to_q, .*\) of the prior"),
        (
            r".*(q_proj|vega3d.*)",
            r"matches \d+ modules \((model\.)?visual\.vega3d.*\) of the branch, which trains in full",
        ),
    ],
)
def test_patterns_that_are_refused(targets: Any, message: str) -> None:
    model = patched()
    with pytest.raises(LoraTargetError, match=message):
        check_lora_targets(model, {"target_modules": targets})


def test_a_prior_that_someone_put_into_the_model_is_not_trained() -> None:
    model = patched()
    prior: Any = vega3d.get_handle(model).branch.prior
    model.add_module("generator", prior.models["transformer"])
    with pytest.raises(LoraTargetError, match=r"matches \d+ modules \(generator.*\) of the prior, which is frozen"):
        check_lora_targets(model, {"target_modules": ["q_proj", "to_q"]})
    assert check_lora_targets(model, {"target_modules": ["q_proj"]})


def test_the_choice_may_be_left_to_peft() -> None:
    assert check_lora_targets(tiny_model(), {"r": 8}) == []
