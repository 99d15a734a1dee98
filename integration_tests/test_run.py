"""``vega3d run``: scripts that know nothing of vega3d train, save, resume, reload and evaluate hosts with the branch.

The scripts in ``host_scripts`` go about it in the order of VG-LLM's, OpenVLA-OFT's and LLaVA-NeXT's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from processes import run_whole
from safetensors.torch import load_file
from scripts import SCRIPTS, Script, logits, moved, run_script, said, saved_branch, scripts_own, write_recipe

import vega3d
from vega3d_plugin.contracts.errors import FrozenBranchError, SavedBranchError, Vega3dWarning
from vega3d_plugin.training.scripts import RunError
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

REMOTE = """
from transformers import Qwen2_5_VLForConditionalGeneration


class MineForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    pass
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the host that brings code of its own."""
    folder = tmp_path_factory.mktemp("host") / "base"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def script(recipe: Path) -> Iterator[Script]:
    """Run a script in this process; gives the lines that were said."""
    with scripts_own():
        yield lambda name, *arguments, recipe=recipe: run_script(recipe, name, *arguments)


def trainer_arguments(base: Path, out: Path, steps: int, **options: object) -> list[str]:
    values = {
        "model_name_or_path": base, "output_dir": out, "max_steps": steps, "save_steps": 2, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "per_device_train_batch_size": 1, "remove_unused_columns": False,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, **options,
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


class TestLikeVgLlm:
    @pytest.mark.parametrize("tuned", [{"tune_mm_llm": True}, {"lora_enable": True}], ids=["full", "lora"])
    def test_trains_saves_and_resumes(self, base: Path, tmp_path: Path, script: Script, tuned: dict[str, bool]) -> None:
        whole = tmp_path / "whole"
        options = {**tuned, "gradient_checkpointing": True}
        lines = script("vg_style.py", *trainer_arguments(base, whole, 4, **options, vision_tower_lr=2e-2))
        assert any("has a new branch" in line for line in lines)
        # The script's own rate for what lies in the vision tower.
        assert any("AdamW" in line and "the groups of the script, lr 0.02" in line for line in lines)
        for folder in (whole / "checkpoint-2", whole / "checkpoint-4", whole):
            assert moved(saved_branch(folder)), folder
        assert not (whole / "README.md").exists() or "lora_enable" in tuned

        half = tmp_path / "half"
        script("vg_style.py", *trainer_arguments(base, half, 2, **options, vision_tower_lr=2e-2))
        assert (half / "checkpoint-2").is_dir()
        script("vg_style.py", *trainer_arguments(base, half, 4, **options, vision_tower_lr=2e-2))
        assert torch.equal(torch.load(half / "logits-0.pt"), torch.load(whole / "logits-0.pt"))

    @pytest.mark.parametrize("held", [True, False], ids=["float32", "as the host"])
    def test_small_steps_are_not_lost_in_bfloat16(
        self, base: Path, tmp_path: Path, script: Script, held: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the released rate, on a host in bfloat16 without DeepSpeed."""
        # Before transformers 5 the arguments write it there, for every training that follows in this process.
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        recipe = write_recipe(
            tmp_path / "held.yaml",
            train={"learning_rate": 1e-5, "batch_size": 1, "master_float32": held},
            fusion={"init": "released"},
        )
        kept, out = tmp_path / "kept", tmp_path / "out"
        options = {"tune_mm_llm": True, "bf16": True}
        # A rate of 0 leaves the branch as it starts.
        script("vg_style.py", *trainer_arguments(base, kept, 1, **options, learning_rate=0.0), recipe=recipe)
        told: AbstractContextManager[object] = (
            nullcontext() if held else pytest.warns(Vega3dWarning, match="without float32 copies")
        )
        with told:
            lines = script(
                "vg_style.py", *trainer_arguments(base, out, 2, **options, learning_rate=1e-5), recipe=recipe
            )
        assert any("is held in float32 while it trains" in line for line in lines) is held
        before, after = saved_branch(kept), saved_branch(out)
        same = [bool(before[key].equal(after[key])) for key in before]
        assert not all(same)
        total = sum(tensor.numel() for tensor in after.values())
        moved_elements = sum(int((before[key] != after[key]).sum()) for key in after)
        assert (moved_elements > 0.9 * total) is held, f"{moved_elements} of {total}"

    def test_the_result_rebuilds_the_model(self, base: Path, tmp_path: Path, script: Script) -> None:
        out = tmp_path / "out"
        script("vg_style.py", *trainer_arguments(base, out, 2, tune_mm_llm=True))
        expected = torch.load(out / "logits-0.pt")
        # In Python, in the two lines of the README.
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(out)
        assert torch.equal(logits(vega3d.load_pretrained(model, out)), expected)
        # And in a script that only evaluates.
        lines = script("evaluate.py", out, tmp_path / "again.pt")
        assert lines == [f"Qwen2_5_VLForConditionalGeneration from {out} has the branch of {out}"]
        assert torch.equal(torch.load(tmp_path / "again.pt"), expected)

    def test_an_adapter_on_its_base(self, base: Path, tmp_path: Path, script: Script) -> None:
        out = tmp_path / "out"
        script("vg_style.py", *trainer_arguments(base, out, 2, lora_enable=True))
        expected = torch.load(out / "logits-0.pt")
        script("evaluate.py", base, tmp_path / "again.pt", out)
        assert torch.equal(torch.load(tmp_path / "again.pt"), expected)
        # The auto class takes the adapter's folder for the model's.
        script("evaluate.py", out, tmp_path / "auto.pt")
        assert torch.equal(torch.load(tmp_path / "auto.pt"), expected)
        card = (out / "README.md").read_text()
        assert "More Information Needed" not in card
        found: dict[str, Any] = {}
        exec(card.partition("```python\n")[2].partition("```")[0], found)
        assert isinstance(found["model"], PeftModel)
        assert torch.equal(logits(found["model"].eval()), expected)
        assert "1. the branch" in card.partition("2. the adapter")[0]
        model = vega3d.load_pretrained(tiny_model(), out)
        assert torch.equal(logits(PeftModel.from_pretrained(model, out)), expected)

    @pytest.mark.slow
    @pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
    @pytest.mark.parametrize("stage", [2, 3])
    def test_deepspeed(self, base: Path, recipe: Path, tmp_path: Path, script: Script, stage: int) -> None:
        """On the CPU, in two processes."""
        out, settings = tmp_path / "out", tmp_path / "ds.json"
        zero = {
            "stage": stage, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True,
        }  # fmt: skip
        settings.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}))
        words = trainer_arguments(base, out, 2, tune_mm_llm=True, deepspeed=settings)
        ended = torchrun(recipe, SCRIPTS / "vg_style.py", *words)
        assert ended.returncode == 0, ended.stderr
        assert f"the branch is in {out}, {'too' if stage == 2 else 'among the weights'}" in said(ended.stderr)
        lines = script("evaluate.py", out, tmp_path / "again.pt")
        assert lines == [f"Qwen2_5_VLForConditionalGeneration from {out} has the branch of {out}"]
        found = torch.load(tmp_path / "again.pt")
        torch.testing.assert_close(found, torch.load(out / "logits-0.pt"))
        # The same in one process without DeepSpeed, on the same two rows.
        alone = tmp_path / "alone"
        script("vg_style.py", *trainer_arguments(base, alone, 2, tune_mm_llm=True, gradient_accumulation_steps=2))
        torch.testing.assert_close(found, torch.load(alone / "logits-0.pt"), rtol=1e-3, atol=1e-3)

    def test_all_frozen_but_the_branch(self, base: Path, tmp_path: Path, script: Script) -> None:
        script("vg_style.py", *trainer_arguments(base, tmp_path / "out", 2))
        assert moved(saved_branch(tmp_path / "out"))
        full = load_file(tmp_path / "out" / "model.safetensors")
        for name, tensor in load_file(base / "model.safetensors").items():
            assert torch.equal(full[name], tensor), name


class TestLikeLlava:
    def test_lora_and_what_else_trained(self, base: Path, tmp_path: Path, script: Script) -> None:
        out = tmp_path / "out"
        script("llava_style.py", *trainer_arguments(base, out, 2, lora_enable=True, save_strategy="no"))
        trained = saved_branch(out)
        assert moved(trained)
        # PEFT's own file has it, though the script handed over the LoRA weights alone.
        adapter = load_file(out / "adapter_model.safetensors")
        rest = torch.load(out / "non_lora_trainables.bin", weights_only=True)
        for tensors in (adapter, rest):
            mine = {name.partition(".vega3d.")[2]: tensor for name, tensor in tensors.items() if ".vega3d." in name}
            mine = {name.removeprefix("modules_to_save.default."): tensor for name, tensor in mine.items()}
            assert set(mine) == {*trained, "record"}
            assert all(torch.equal(mine[name], tensor) for name, tensor in trained.items())
        script("evaluate.py", base, tmp_path / "again.pt", out)
        assert torch.equal(torch.load(tmp_path / "again.pt"), torch.load(out / "logits.pt"))

    def test_the_projector_alone(self, base: Path, tmp_path: Path, script: Script) -> None:
        out = tmp_path / "out"
        options = {"mm_tunable_parts": "mm_mlp_adapter", "save_strategy": "no"}
        lines = script("llava_style.py", *trainer_arguments(base, out, 2, **options))
        assert f"the branch is in {out}, too" in lines
        state = torch.load(out / "mm_projector.bin", weights_only=True)
        names = {name.partition(".vega3d.")[2] for name in state if ".vega3d." in name}
        assert names == {*saved_branch(out), "record"}
        # As such scripts read it back: into a patched model, whatever else it lacks.
        model = vega3d.patch(tiny_model(), config=vega3d.get_handle(vega3d.load_pretrained(tiny_model(), out)).settings)
        model.load_state_dict(state, strict=False)
        assert torch.equal(logits(model), torch.load(out / "logits.pt"))
        # The next stage picks the projector's weights out of the file; the branch beside it comes along.
        lines = script("next_stage.py", base, out / "mm_projector.bin", tmp_path / "next.pt")
        assert f"Qwen2_5_VLForConditionalGeneration from {base} has the branch of {out}" in lines
        assert torch.equal(torch.load(tmp_path / "next.pt"), torch.load(out / "logits.pt"))

    def test_training_that_moves_nothing_is_told(self, base: Path, tmp_path: Path, script: Script) -> None:
        options = {"mm_tunable_parts": "mm_mlp_adapter", "save_strategy": "no", "learning_rate": 0.0}
        lines = script("llava_style.py", *trainer_arguments(base, tmp_path / "out", 1, **options))
        assert "note: that branch is as it was when the run began: none of 1 optimisers moved it" in lines


def torchrun(recipe: Path, *words: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    options = ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *options]
    command = [*launcher, "-m", "vega3d_plugin.run", "--recipe", recipe, "--", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return run_whole(command, 300, environment)


@pytest.fixture(scope="module")
def remote(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint again, with a class of its own in a file beside it."""
    folder = tmp_path_factory.mktemp("host") / "remote"
    model = tiny_model()
    # transformers 5 renames weights on the way to disk by the class they come from.
    model.__class__ = type("MineForConditionalGeneration", (type(model),), {})
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    bring_code(folder)
    return folder


def bring_code(folder: Path) -> None:
    (folder / "modeling_mine.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "modeling_mine.MineForConditionalGeneration"}
    (folder / "config.json").write_text(json.dumps(config))


class TestLikeOpenVlaOft:
    def test_two_processes_merge_and_evaluate(self, remote: Path, recipe: Path, tmp_path: Path, script: Script) -> None:
        ended = torchrun(recipe, SCRIPTS / "oft_style.py", "--vla_path", remote, "--run_dir", tmp_path / "run")
        assert ended.returncode == 0, ended.stderr
        lines = said(ended.stderr)
        # The first process alone speaks: the model that trains, and the base that is read again.
        assert sum("has a new branch" in line for line in lines) == 2
        assert all("MineForConditionalGeneration" in line for line in lines if "has a new branch" in line)
        assert sum("has the branch of" in line for line in lines) == 1
        folder = tmp_path / "run--2_chkpt"
        trained = saved_branch(folder / "lora_adapter")
        assert moved(trained)
        merged = saved_branch(folder)
        assert set(merged) == set(trained)
        assert all(torch.equal(merged[name], tensor) for name, tensor in trained.items())
        assert "MISSING" not in ended.stderr
        # Both processes trained one and the same: what DDP averaged is what the adapter holds.
        whole = torch.load(folder / "all--2_checkpoint.pt", weights_only=True)
        mine = {n.partition(".modules_to_save.default.")[2]: t for n, t in whole.items() if ".vega3d.modules" in n}
        assert all(torch.equal(mine[name], tensor) for name, tensor in trained.items())
        bring_code(folder)
        script("evaluate.py", folder, tmp_path / "again.pt")
        assert torch.equal(torch.load(tmp_path / "again.pt"), torch.load(folder / "logits.pt"))


class TestMistakes:
    def test_a_checkpoint_of_another_recipe(self, base: Path, tmp_path: Path, script: Script) -> None:
        out = tmp_path / "out"
        script("vg_style.py", *trainer_arguments(base, out, 1))
        other = write_recipe(tmp_path / "other.yaml", fusion={"name": "add"})
        message = r"holds a branch of another recipe.*fusion.name is 'add', asked for 'token_gated_residual'"
        with pytest.raises(SavedBranchError, match=message):
            script("evaluate.py", out, tmp_path / "x.pt", recipe=other)

    def test_a_model_that_is_no_host(self, tmp_path: Path, script: Script) -> None:
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
        path = tmp_path / "script.py"
        path.write_text(
            "import sys, torch, transformers\n"
            "model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
            "if len(sys.argv) > 2: optimizer.step()\n"
        )
        with pytest.raises(RunError, match=r"ended, but no host of adapter 'qwen_vl' .*built were LlamaForCausalLM"):
            script(path, tmp_path / "llama")
        with pytest.raises(RunError, match=r"torch\.SGD is about to train, but no host"):
            script(path, tmp_path / "llama", "train")

    def test_a_recipe_of_another_host(self, base: Path, tmp_path: Path, script: Script) -> None:
        other = write_recipe(tmp_path / "other.yaml", host={"adapter": "openvla", "model": "tiny", "dtype": "float32"})
        message = r"no host of adapter 'openvla' .*built were Qwen2_5_VL.* Name a recipe of adapter 'qwen_vl'"
        with pytest.raises(RunError, match=message):
            script("evaluate.py", base, tmp_path / "x.pt", recipe=other)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("o.param_groups.pop()", r"torch\.AdamW is about to make its first step .* in the parameter groups of no"),
            (
                "model.requires_grad_(False); model.lm_head.requires_grad_(True)",
                r"torch\.AdamW is .* step on Qwen2_5_VL.*of the branch are frozen",
            ),
            ("", r"its branch got no gradient"),
            # As DeepSpeed does: the optimiser is left with copies, and the parameters without gradients.
            (
                "for group in o.param_groups:\n"
                "    group['params'] = [p.detach().clone() for p in group['params']]\n"
                "    for p in group['params']: p.grad = torch.ones_like(p)",
                r"its branch got no gradient",
            ),
        ],
    )
    def test_an_optimiser_that_lost_the_branch(
        self, base: Path, tmp_path: Path, script: Script, code: str, message: str
    ) -> None:
        path = tmp_path / "script.py"
        path.write_text(
            "import sys, torch, transformers\n"
            "model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1])\n"
            "model.requires_grad_(False)\n"
            "model.lm_head.requires_grad_(True)\n"
            "o = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)\n"
            f"{code}\n"
            # The head alone, so that the branch is in no graph.
            "model.lm_head(torch.randn(1, 64)).sum().backward()\n"
            "o.step()\n"
        )
        with pytest.raises(FrozenBranchError, match=message):
            script(path, base)

    def test_a_new_branch_that_nothing_trained(self, base: Path, tmp_path: Path, script: Script) -> None:
        lines = script("evaluate.py", base, tmp_path / "x.pt")
        assert lines[-1].startswith("note: nothing was trained or restored")
        assert torch.equal(torch.load(tmp_path / "x.pt"), logits(tiny_model()))
