"""TRL's DPO and GRPO trainers with a branch: what docs/trl.md says of their reference models, on a tiny Qwen2.5-VL."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import nn

import vega3d
from vega3d_qwen_vl import tiny

trl = pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = [
    pytest.mark.long,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["vega3d"]}
SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (56, 84, 3), dtype=np.uint8))


def with_a_trained_branch() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    processor = tiny.tiny_processor()
    model = vega3d.patch(tiny.tiny_model(), "tiny-wan", processor=processor)
    for parameter in vega3d.get_handle(model).parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model, processor


def branch_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "vega3d" in n and p.requires_grad}


def margins(model: nn.Module, processor: Any, folder: Path, **options: Any) -> tuple[Any, list[float]]:
    """A trainer after two steps of DPO, and the reward margin of each step."""
    from datasets import Dataset

    def says(text: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "left or right?"}]}]
    row = {"prompt": asked, "chosen": says("left"), "rejected": says("right")}
    rows = Dataset.from_list([{"images": [picture(seed)], **row} for seed in (0, 1)])
    arguments = trl.DPOConfig(str(folder), per_device_train_batch_size=1, max_length=None, **SETTINGS)
    trainer = trl.DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor, **options)
    before = branch_of(trainer.model)
    trainer.train()
    after = branch_of(trainer.model)
    assert before
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    return trainer, [row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row]


REFERENCES: dict[str, Callable[[nn.Module], tuple[nn.Module, dict[str, Any]]]] = {
    "adapter off": lambda model: (model, {"peft_config": LoraConfig(**LORA)}),
    "adapter ref": lambda model: (get_peft_model(model, LoraConfig(**LORA)), {}),
    "a copy": lambda model: (model, {"ref_model": copy.deepcopy(model)}),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_reference_has_the_branch_as_it_was(reference: str, tmp_path: Path) -> None:
    model, processor = with_a_trained_branch()
    model, options = REFERENCES[reference](model)
    trainer, found = margins(model, processor, tmp_path, **options)
    assert found[0] == 0
    assert found[1] != 0
    if "peft_config" in options:
        trainer.save_model(str(tmp_path / "saved"))
        loaded = vega3d.load_pretrained(tiny.tiny_model(), tmp_path / "saved")
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "saved", is_trainable=True)
        own = branch_of(loaded)
        assert all(torch.equal(own[name], value) for name, value in branch_of(trainer.model).items())


def test_a_bare_reference_lacks_the_branch(tmp_path: Path) -> None:
    model, processor = with_a_trained_branch()
    _, found = margins(model, processor, tmp_path, ref_model=tiny.tiny_model())
    assert found[0] != 0


def test_grpo_trains_the_branch(tmp_path: Path) -> None:
    from datasets import Dataset

    model, processor = with_a_trained_branch()
    prompt = [{"role": "user", "content": "left or right?"}]
    rows = Dataset.from_list([{"prompt": prompt, "image": picture(seed)} for seed in range(4)])

    def by_place(completions: list[Any], **_: Any) -> list[float]:
        return [float(place) for place in range(len(completions))]

    options = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4, "beta": 0.1}
    trainer = trl.GRPOTrainer(
        model=model,
        args=trl.GRPOConfig(str(tmp_path), **SETTINGS, **options),
        reward_funcs=by_place,
        train_dataset=rows,
        processing_class=processor,
        peft_config=LoraConfig(**LORA),
    )
    before = branch_of(trainer.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0
    after = branch_of(trainer.model)
    assert before
    assert all(not torch.equal(after[name], value) for name, value in before.items())
