"""A branch that was trained with another prior or other settings is refused, whoever loads its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
import transformers
from hosts import logits, patch, train
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import vega3d
from vega3d_plugin.contracts.errors import SavedBranchError
from vega3d_plugin.storage.record import encode_record

NEWER = hasattr(transformers, "Qwen3VLForConditionalGeneration")

#: Newer transformers give LLaVA's tensors other names in a full checkpoint, which their Trainer does not find again.
HOST = next(row for row in hosts.HOSTS if row.name == "qwen3_vl" or (row.name == "llava" and not NEWER))
#: Settings of the model that is loaded into, against timestep 300 of the saved one, and the key that is told.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "timestep": ({"timestep": 700}, r"settings\.prior\.timestep: saved 300, this model 700"),
    "seed": ({"seed": 5}, r"settings\.prior\.seed: saved 0, this model 5"),
    "images": ({"images": "scene", "context": "views"}, r"settings\.images: saved 'separate', this model 'scene'"),
}


def lora(model: nn.Module) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["vega3d"]))


def other(**settings: Any) -> nn.Module:
    return patch(HOST.build(), **settings)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    model = lora(patch(HOST.build()))
    train(model, HOST.batch(), steps=1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("settings", "message"), OTHERS.values(), ids=OTHERS)
def test_peft_from_pretrained(adapter: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SavedBranchError, match=message):
        PeftModel.from_pretrained(other(**settings), adapter)


def test_peft_load_adapter(adapter: Path) -> None:
    model = lora(other(timestep=700))
    with pytest.raises(SavedBranchError, match="timestep"):
        model.load_adapter(adapter, "second")


def test_load_state_dict() -> None:
    state = patch(HOST.build()).state_dict()
    with pytest.raises(SavedBranchError, match=r"vega3d\.record of the state dictionary"):
        other(timestep=700).load_state_dict(state)
    with pytest.raises(SavedBranchError, match="timestep"):
        other(timestep=700).load_state_dict(state, strict=False)


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One row, again and again."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = HOST.batch()
        return {**batch, "labels": batch["input_ids"].clone()}


def trainer(model: nn.Module, folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=1, per_device_train_batch_size=1, report_to=[],
        use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Rows(), data_collator=lambda rows: rows[0])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_trainer_resumes_its_own_and_no_other(tmp_path: Path, kind: str) -> None:
    def build(**settings: Any) -> Any:
        return lora(other(**settings)) if kind == "lora" else other(**settings)

    trainer(build(), tmp_path, 1).train()
    trainer(build(), tmp_path, 2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(SavedBranchError, match="timestep"):
        trainer(build(timestep=700), tmp_path, 2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


class TestWhatMayDiffer:
    def test_start_place_and_speed(self, adapter: Path, tmp_path: Path) -> None:
        PeftModel.from_pretrained(other(init="released", chunk_frames=1, fast=False), adapter)

    def test_never_saved(self) -> None:
        """Zeros, as in a branch that has been built and not saved."""
        model = other(timestep=700)
        state = other(timestep=700).state_dict()
        name = next(key for key in state if key.endswith("vega3d.record"))
        state[name] = torch.zeros_like(state[name])
        model.load_state_dict(state)

    def test_partial_dictionaries(self) -> None:
        state = patch(HOST.build()).state_dict()
        state = {name: value for name, value in state.items() if not name.endswith("record")}
        other(timestep=700).load_state_dict(state, strict=False)

    def test_another_version_of_the_library(self) -> None:
        model, again = patch(HOST.build()), patch(HOST.build())
        branch = vega3d.get_handle(model).branch
        record = branch.make_record()
        record["library_version"] = "0.0.1"
        record["settings"]["projector"].pop("hidden_dim")
        record["settings"]["later"] = 3
        state = model.state_dict()
        name = next(key for key in state if key.endswith("vega3d.record"))
        again.load_state_dict({**state, name: encode_record(record)})

    def test_what_load_pretrained_was_allowed(self, adapter: Path) -> None:
        """``allow_prior`` holds for the adapter, too, which is loaded next."""
        model = vega3d.load_pretrained(HOST.build(), adapter, timestep=700, allow_prior="tiny-wan")
        model = PeftModel.from_pretrained(model, adapter).eval()
        assert vega3d.get_handle(model).settings.prior.timestep == 700
        assert torch.isfinite(logits(model, HOST.batch())).all()


def test_a_damaged_record() -> None:
    state = patch(HOST.build()).state_dict()
    name = next(key for key in state if key.endswith("vega3d.record"))
    with pytest.raises(SavedBranchError, match=r"vega3d\.record"):
        patch(HOST.build()).load_state_dict({**state, name: torch.full_like(state[name], 7)})
