"""``vega3d run`` on the hosts' own training and evaluation scripts, as they are in ``VEGA3D_HOST_SOURCES``.

Tiny models of the real classes, one process, a CPU. What stands in for absent packages is in
``host_scripts/stand_ins.py``: imports, data pipelines and calls to a GPU, no model, trainer or optimiser.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_runs import branch_of, flags, run, same, write_recipe
from host_sources import host_source
from PIL import Image
from rows.llava_package import CROP, installed, next_model, tower_folder
from rows.openvla import SIDE, can_run, real_model, real_module
from safetensors.torch import load_file
from scripts import said
from torch import Tensor
from transformers import TrainingArguments

from vega3d_plugin.features.store import FeatureStore
from vega3d_plugin.recipes.library import list_recipes
from vega3d_qwen_vl.tiny import tiny_tokenizer

HERE = Path(__file__).parent


def last_json(text: str) -> dict[str, Any]:
    """The object at the end of what a script and the command have written."""
    found: dict[str, Any] = json.loads(text[text.rindex("\n{\n") :])
    return found


@pytest.mark.skipif(installed() != "LLaVA-NeXT", reason="no checkout of LLaVA-NeXT that this environment can import")
class TestLlavaNext:
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("llava") / "llava-qwen-tiny"
        tokenizer = tiny_tokenizer()
        # The script expects exactly these two.
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, replace_additional_special_tokens=True
        )
        tokenizer.save_pretrained(folder)
        next_model(vocab_size=512, tokenizer_padding_side="right").to(torch.bfloat16).save_pretrained(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Rows with an image and rows with a video, which the script reads as a folder of frames."""
        root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
        frames = root / "shareVideoGPTV" / "walk"
        frames.mkdir(parents=True)
        for path in (root / "room.png", *(frames / f"{i}.png" for i in range(10))):
            Image.fromarray(rng.integers(0, 255, (CROP, CROP, 3), dtype=np.uint8)).save(path)
        talk = [{"from": "human", "value": "<image>\nLeft or right?"}, {"from": "gpt", "value": "Left."}]
        rows = [
            {"id": i, ("image" if i % 2 else "video"): "room.png" if i % 2 else "shareVideoGPTV/walk"} for i in range(4)
        ]
        (root / "rows.json").write_text(json.dumps([{**row, "conversations": talk} for row in rows]))
        return root

    def arguments(self, base: Path, data: Path, out: Path, **options: object) -> list[str]:
        values: dict[str, Any] = {
            "model_name_or_path": base, "version": "qwen_1_5", "data_path": data / "rows.json", "image_folder": data,
            "video_folder": data, "vision_tower": tower_folder(), "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
            "mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "grid", "image_aspect_ratio": "pad",
            "bf16": True, "use_cpu": True, "output_dir": out, "max_steps": 4, "per_device_train_batch_size": 1,
            "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "report_to": "none",
            "attn_implementation": "sdpa", "gradient_checkpointing": True, "dataloader_num_workers": 0,
            "lazy_preprocess": True, "model_max_length": 2048, "disable_tqdm": True, **options,
        }  # fmt: skip
        return flags(**values)

    def evaluate(self, recipe: Path, out: Path, path: Path, *adapter: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The branch that an evaluation has, and what was said; its logits are those of a model made in Python."""
        script, target = HERE / "host_scripts" / "llava_eval.py", out / "evaluated.safetensors"
        lines = said(run("llava", "LLaVA-NeXT", recipe, script, path, target, *adapter))
        run("llava", "LLaVA-NeXT", None, script, "plain", path, out / "plain.safetensors", *adapter)
        found, plain = load_file(target), load_file(out / "plain.safetensors")
        assert same(found, plain)
        assert found.pop("logits").isfinite().all()
        return found, lines

    @pytest.mark.parametrize("parts", ["mm_vision_tower,mm_mlp_adapter,mm_language_model", "mm_mlp_adapter"])
    def test_full(self, base: Path, data: Path, tmp_path: Path, parts: str) -> None:
        recipe, out = write_recipe(tmp_path / "r.yaml", "llava_video"), tmp_path / "llava-qwen-out"
        words = self.arguments(base, data, out, mm_tunable_parts=parts)
        lines = said(run("llava", "LLaVA-NeXT", recipe, "llava/train/train_mem.py", *words))
        assert f"LlavaQwenForCausalLM from {base} has a new branch" in lines[0]
        assert any("AdamW: the branch of LlavaQwenForCausalLM is in the groups" in line for line in lines)
        trained = branch_of(out)
        assert bool(trained["fuser.residual_scale"].abs() > 0)
        assert not same(branch_of(out / "checkpoint-2"), trained)
        if parts == "mm_mlp_adapter":
            state = torch.load(out / "mm_projector.bin", weights_only=True)
            mine = {name.partition("vega3d.")[2]: tensor for name, tensor in state.items() if "vega3d." in name}
            assert same({name: t for name, t in mine.items() if name != "record"}, trained)
            # The next stage is given that file, and the base again.
            again = tmp_path / "llava-qwen-next"
            words = self.arguments(base, data, again, mm_tunable_parts=parts, max_steps=1)
            words += flags(pretrain_mm_mlp_adapter=out / "mm_projector.bin", learning_rate=0.0)
            lines = said(run("llava", "LLaVA-NeXT", recipe, "llava/train/train_mem.py", *words))
            assert f"LlavaQwenForCausalLM from {base} has the branch of {out}" in lines
            assert same(branch_of(again), trained)
            return
        found, lines = self.evaluate(recipe, tmp_path, out)
        assert lines == [f"LlavaQwenForCausalLM from {out} has the branch of {out}"]
        assert same(found, trained)

    def test_lora(self, base: Path, data: Path, tmp_path: Path) -> None:
        recipe, out = write_recipe(tmp_path / "r.yaml", "llava_video"), tmp_path / "llava-qwen-lora-out"
        words = self.arguments(base, data, out, mm_tunable_parts="mm_mlp_adapter,mm_language_model", lora_enable=True)
        run("llava", "LLaVA-NeXT", recipe, "llava/train/train_mem.py", *words)
        trained = branch_of(out)
        assert bool(trained["fuser.residual_scale"].abs() > 0)
        rest = torch.load(out / "non_lora_trainables.bin", weights_only=True)
        for tensors in (rest, load_file(out / "adapter_model.safetensors")):
            mine = {name.partition(".vega3d.")[2]: tensor for name, tensor in tensors.items() if ".vega3d." in name}
            mine = {name.removeprefix("modules_to_save.default."): tensor for name, tensor in mine.items()}
            assert same({name: t for name, t in mine.items() if name != "record"}, trained)
        found, lines = self.evaluate(recipe, tmp_path, base, out)
        assert lines[-1] == f"LlavaQwenForCausalLM from {base} has the branch of {out}"
        assert same(found, trained)

    def test_extracted_features_are_those_that_training_stores(self, base: Path, data: Path, tmp_path: Path) -> None:
        """By the training's own command; no weights are there to be loaded, neither the host's nor its tower's."""
        recipe, out = write_recipe(tmp_path / "r.yaml", "llava_video"), tmp_path / "out"
        parts = {"mm_tunable_parts": "mm_mlp_adapter", "image_aspect_ratio": "anyres", "frames_upbound": 4}
        parts["image_grid_pinpoints"] = f"[[{CROP}, {2 * CROP}], [{2 * CROP}, {CROP}]]"
        script = "llava/train/train_mem.py"
        words = self.arguments(base, data, out, **parts)
        run("llava", "LLaVA-NeXT", recipe, script, *words, verb=("run", "--store", tmp_path / "trained"))
        bare, tower = tmp_path / "llava-qwen-bare", tmp_path / "tower"
        for source, target in ((base, bare), (Path(tower_folder()), tower)):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json"))
        config = json.loads((bare / "config.json").read_text())
        (bare / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(tower)}))
        words = self.arguments(bare, data, tmp_path / "nothing", **parts, vision_tower=tower)
        verb = ("extract", "--json", "--store", tmp_path / "extracted", "--verify", 4)
        found = last_json(run("llava", "LLaVA-NeXT", recipe, script, *words, verb=verb, out=True))
        trained, extracted = FeatureStore(tmp_path / "trained"), FeatureStore(tmp_path / "extracted")
        assert trained.owner()["fingerprint"] == extracted.owner()["fingerprint"]
        assert trained.names() == extracted.names()
        # The video, and the image with the two tiles that it is cut into.
        assert len(trained.names()) == 4
        assert all(torch.equal(trained.get(name), extracted.get(name)) for name in trained.names())
        assert (found["rows"], found["clips"], found["bad"], found["different"]) == (4, 4, {}, {})
        assert not (tmp_path / "nothing").exists() or not list((tmp_path / "nothing").rglob("*.safetensors"))

    def test_a_vision_tower_that_is_loaded_later(self, base: Path, data: Path, tmp_path: Path) -> None:
        late = tmp_path / "llava-qwen-late"
        next_model(vocab_size=512).to(torch.bfloat16).save_pretrained(late)
        for file in base.iterdir():
            if not (late / file.name).exists():
                (late / file.name).write_bytes(file.read_bytes())
        config = json.loads((late / "config.json").read_text())
        (late / "config.json").write_text(json.dumps({**config, "delay_load": True}))
        recipe, out = write_recipe(tmp_path / "r.yaml", "llava_video"), tmp_path / "out"
        words = self.arguments(
            late, data, out, mm_tunable_parts="mm_mlp_adapter,mm_language_model", lora_enable=True, max_steps=2
        )
        lines = said(run("llava", "LLaVA-NeXT", recipe, "llava/train/train_mem.py", *words))
        assert "is not complete yet and waits for its branch" in lines[0]
        assert "has a new branch" in lines[1]
        assert bool(branch_of(out)["fuser.residual_scale"].abs() > 0)
        assert any(".vega3d." in name for name in load_file(out / "adapter_model.safetensors"))


def action_tokenizer() -> Any:
    """A Llama-like vocabulary of 32000 single characters, whose last ids are actions."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<pad>", *map(chr, range(32, 127)), "\n"]
    words += [chr(0x4E00 + i) for i in range(32000 - len(words))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=512, padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.mark.skipif(
    not can_run() or host_source("openvla-oft") is None, reason="no checkout of OpenVLA-OFT that this environment runs"
)
class TestOpenVlaOft:
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("oft") / "openvla-tiny"
        real_model("openvla-oft").to(torch.bfloat16).save_pretrained(folder)
        processing = real_module("openvla-oft", "processing_prismatic")
        images = processing.PrismaticImageProcessor(
            use_fused_vision_backbone=True, image_resize_strategy="resize-naive", input_sizes=[[3, SIDE, SIDE]] * 2,
            interpolations=["bicubic"] * 2, means=[[0.485, 0.456, 0.406], [0.5] * 3],
            stds=[[0.229, 0.224, 0.225], [0.5] * 3],
        )  # fmt: skip
        processing.PrismaticProcessor(images, action_tokenizer()).save_pretrained(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def recipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_recipe(tmp_path_factory.mktemp("recipe") / "r.yaml", "openvla")

    @classmethod
    def finetune(cls, recipe: Path, base: Path, runs: Path, *, processes: int = 1, **options: object) -> list[str]:
        values: dict[str, object] = {
            "vla_path": base, "data_root_dir": runs, "dataset_name": "libero_spatial_no_noops", "run_root_dir": runs,
            "use_l1_regression": True, "num_images_in_input": 2, "use_proprio": True, "batch_size": 1,
            "learning_rate": 1e-2, "max_steps": 4, "save_freq": 2, "image_aug": False, "lora_rank": 4,
            "run_id_override": "tiny", "grad_accumulation_steps": 1, "merge_lora_during_training": True, **options,
        }  # fmt: skip
        words = ("vla-scripts/finetune.py", *flags(**values))
        return said(run("oft", "openvla-oft", recipe, *words, processes=processes))

    def evaluate(
        self, recipe: Path | None, folder: Path, out: Path, *before: object, **options: object
    ) -> tuple[Tensor, list[str]]:
        """Act through OFT's evaluation; the actions, ``[22, 7]``, and what was said."""
        logs = out.with_suffix("")
        values: dict[str, object] = {
            "pretrained_checkpoint": folder, "task_suite_name": "libero_spatial", "center_crop": False,
            "num_trials_per_task": 1, "local_log_dir": logs, "env_img_res": 64, "lora_rank": 4, **options,
        }  # fmt: skip
        words = before or ("experiments/robot/libero/run_libero_eval.py",)
        text = run("oft", "openvla-oft", recipe, *words, *flags(**values), VEGA3D_TEST_ACTIONS=str(out))
        log = next(logs.glob("EVAL-*.txt")).read_text()
        # The script catches what goes wrong in an episode, and goes on.
        assert "Episode error" not in log
        assert "Overall success rate: 1.0000" in log
        return torch.load(out), said(text)

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, base: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
        """The runs of two processes, and what was said."""
        runs = tmp_path_factory.mktemp("runs")
        return runs, cls.finetune(recipe, base, runs, processes=2)

    def test_finetune_merges_while_it_trains(self, base: Path, trained: tuple[Path, list[str]]) -> None:
        runs, lines = trained
        assert f"OpenVLAForActionPrediction from {base} has a new branch" in lines[0]
        assert "AdamW: the branch of OpenVLAForActionPrediction is in the groups" in lines[1]
        for step in (2, 4):
            folder = runs / f"tiny--{step}_chkpt"
            branch = branch_of(folder / "lora_adapter")
            assert bool(branch["fuser.residual_scale"].abs() > 0)
            # The base was read again and merged with the adapter; the result holds the trained branch.
            assert same(branch_of(folder), branch)
        assert not same(branch_of(runs / "tiny--2_chkpt"), branch_of(runs / "tiny--4_chkpt"))

    def test_libero_evaluation(self, base: Path, recipe: Path, trained: tuple[Path, list[str]], tmp_path: Path) -> None:
        folder = trained[0] / "tiny--4_chkpt"
        actions, lines = self.evaluate(recipe, folder, tmp_path / "a.pt")
        assert lines == [f"OpenVLAForActionPrediction from {folder} has the branch of {folder}"]
        # What the merged checkpoint computes is what base, adapter and branch compute, bit for bit.
        script = HERE / "host_scripts" / "oft_eval.py"
        assert torch.equal(self.evaluate(None, folder, tmp_path / "b.pt", script, base)[0], actions)
        # And the branch takes part.
        alone = write_recipe(tmp_path / "none.yaml", "openvla", prior=None)
        assert not torch.equal(self.evaluate(alone, folder, tmp_path / "c.pt")[0], actions)

    def test_merged_later(self, base: Path, recipe: Path, trained: tuple[Path, list[str]], tmp_path: Path) -> None:
        """``merge_lora_weights_and_save.py``, for runs that did not merge."""
        merged, folder = trained[0] / "tiny--4_chkpt", tmp_path / "tiny--4_chkpt"
        shutil.copytree(merged / "lora_adapter", folder / "lora_adapter")
        words = flags(base_checkpoint=base, lora_finetuned_checkpoint_dir=folder)
        run("oft", "openvla-oft", recipe, "vla-scripts/merge_lora_weights_and_save.py", *words)
        assert same(branch_of(folder), branch_of(merged))
        assert same(load_file(folder / "model.safetensors"), load_file(merged / "model.safetensors"))

    def test_resumes_from_the_merged_checkpoint(
        self, recipe: Path, trained: tuple[Path, list[str]], tmp_path: Path
    ) -> None:
        folder = trained[0] / "tiny--4_chkpt"
        options = {"resume": True, "resume_step": 4, "max_steps": 6}
        lines = self.finetune(recipe, folder, tmp_path, **options)
        assert lines[0] == f"OpenVLAForActionPrediction from {folder} has the branch of {folder}"
        again = branch_of(tmp_path / "tiny--6_chkpt")
        assert not same(again, branch_of(folder))
        assert same(again, branch_of(tmp_path / "tiny--6_chkpt" / "lora_adapter"))

    def test_film(self, base: Path, recipe: Path, tmp_path: Path) -> None:
        """The vision backbone is wrapped after the branch was added; the evaluation makes LoRA and wrapper again."""
        self.finetune(recipe, base, tmp_path, use_film=True, max_steps=2)
        folder = tmp_path / "tiny--2_chkpt"
        assert bool(branch_of(folder)["fuser.residual_scale"].abs() > 0)
        actions, lines = self.evaluate(recipe, folder, tmp_path / "a.pt", use_film=True)
        assert f"OpenVLAForActionPrediction from {folder} has the branch of {folder}" in lines
        alone = write_recipe(tmp_path / "none.yaml", "openvla", prior=None)
        assert not torch.equal(self.evaluate(alone, folder, tmp_path / "b.pt", use_film=True)[0], actions)


#: Where the scripts are that recipes name. VG-LLM's is in no checkout that the tests know.
CHECKOUTS = {"llava": "LLaVA-NeXT", "vla-scripts": "openvla-oft", "experiments": "openvla-oft"}


def commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Recipe, script and flags of each command that runs a host's script, from the recipes' header comments."""
    found = []
    for recipe in list_recipes():
        lines = [line.removeprefix("#").strip() for line in recipe.path.read_text().splitlines() if line[:1] == "#"]
        text = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
        for command in re.findall(r"--recipe \S+ -- (\S+\.py .*)", text):
            script = command.split()[0]
            if script.partition("/")[0] in CHECKOUTS:
                found.append((recipe.name, script, tuple(re.findall(r" --(\w+)", command))))
    return found


class TestRecipesCommands:
    """The flags in recipes' headers are those of the real scripts; these are read, not run."""

    def test_there_are_commands(self) -> None:
        scripts = {script for _, script, _ in commands()}
        assert {"llava/train/train_mem.py", "vla-scripts/finetune.py"} <= scripts
        assert "experiments/robot/libero/run_libero_eval.py" in scripts

    @pytest.mark.parametrize(("recipe", "script", "given"), commands(), ids=lambda value: str(value)[:60])
    def test_flags(self, recipe: str, script: str, given: tuple[str, ...]) -> None:
        source = host_source(CHECKOUTS[script.partition("/")[0]])
        if source is None:
            pytest.skip(f"no checkout with {script}")
        path = source / script
        # train_mem.py is train.py with an entry of its own.
        path = path.with_name("train.py") if path.name == "train_mem.py" else path
        tree = ast.parse(path.read_text())
        fields = {
            line.target.id
            for cls in ast.walk(tree)
            if isinstance(cls, ast.ClassDef)
            for line in cls.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        if "TrainingArguments" in path.read_text():
            fields |= {field.name for field in dataclasses.fields(TrainingArguments)}
        assert given
        assert set(given) <= fields, recipe
