"""The lines that the pages give for a host's own scripts, put where the pages say, in a copy of the real script.

Needs ``VEGA3D_HOST_SOURCES``, as :mod:`test_run_hosts`, whose tiny models, data and stand-ins are used.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import test_run_hosts as through_run
import torch
from host_sources import REPOSITORIES, host_source
from rows.llava_package import installed, next_model
from rows.openvla import can_run
from safetensors.torch import load_file
from torch import Tensor

import vega3d

DOCS = Path(__file__).parents[1] / "docs"
FINETUNE, EVALUATE = "vla-scripts/finetune.py", "experiments/robot/libero/run_libero_eval.py"
TRAIN = "llava/train/train.py"
Edit = Callable[..., None]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, for a prior that needs no download."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        textwrap.dedent(block).replace("wan2.1-t2v-1.3b", "tiny-wan")
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def block_with(page: str, words: str) -> str:
    """The one block with these words."""
    (found,) = [block for block in blocks(page) if words in block]
    return found


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Put lines into a script of a checkout; what runs afterwards sees a copy."""
    root = tmp_path / "sources"
    originals = {name: host_source(name) for name in REPOSITORIES}

    def change(checkout: str, script: str, *lines: tuple[str, str, str], imports: str = "import vega3d") -> None:
        """``lines``: where (``before`` or ``after``), a line of the script, and what to put there."""
        original = originals[checkout]
        assert original is not None
        text = (original / script).read_text()
        for where, mark, block in lines:
            (line,) = [line for line in text.splitlines() if line.strip() == mark]
            put = textwrap.indent(block, line[: len(line) - len(line.lstrip())])
            text = text.replace(f"{line}\n", f"{put}{line}\n" if where == "before" else f"{line}\n{put}", 1)
        copied = root / checkout
        copied.mkdir(parents=True, exist_ok=True)
        *folders, name = Path(script).parts
        source = original
        for folder in ["", *folders]:
            source, copied = source / folder, copied / folder
            if copied.is_symlink():
                copied.unlink()
            copied.mkdir(exist_ok=True)
            for entry in source.iterdir():
                if not (copied / entry.name).exists():
                    (copied / entry.name).symlink_to(entry)
        (copied / name).unlink()
        (copied / name).write_text(f"{imports}\n{text}")
        monkeypatch.setenv("VEGA3D_HOST_SOURCES", str(root))

    return change


def branch_in(file: Path) -> dict[str, Tensor]:
    """The branch's tensors in a checkpoint of the host or an adapter of PEFT, without its record."""
    found = {name.partition(".vega3d.")[2]: tensor for name, tensor in load_file(file).items() if ".vega3d." in name}
    return {name.removeprefix("modules_to_save.default."): t for name, t in found.items() if "record" not in name}


@pytest.mark.skipif(
    not can_run() or host_source("openvla-oft") is None, reason="no checkout of OpenVLA-OFT that this environment runs"
)
class TestOpenVlaOft:
    base, finetune, evaluate = (getattr(through_run.TestOpenVlaOft, n) for n in ("base", "finetune", "evaluate"))

    def test_training_evaluation_and_resuming(self, base: Path, edit: Edit, tmp_path: Path) -> None:
        both_ways = block_with("openvla.md", "def both_ways")
        patch = block_with("openvla.md", "vega3d.patch(vla")
        parts = ("before", "# FiLM setup", patch)
        trained_too = ("before", "# LoRA setup", re.sub(r"^model\.", "vla.", both_ways, flags=re.MULTILINE))
        edit("openvla-oft", FINETUNE, trained_too, parts)
        self.finetune(None, base, tmp_path / "runs", max_steps=2)
        folder = tmp_path / "runs" / "tiny--2_chkpt"
        trained = branch_in(folder / "lora_adapter" / "adapter_model.safetensors")
        assert bool(trained["fuser.residual_scale"].abs() > 0)
        # The merged model has none.
        assert branch_in(folder / "model.safetensors") == {}

        plain, _ = self.evaluate(None, folder, tmp_path / "plain.pt")
        reset = ("after", "env.reset()", block_with("openvla.md", ".reset()"))
        load = ("after", "model = get_model(cfg)", block_with("openvla.md", "cfg.pretrained_checkpoint"))
        both = ("after", "model = get_model(cfg)", both_ways)
        edit("openvla-oft", EVALUATE, load, reset)
        one_way, _ = self.evaluate(None, folder, tmp_path / "one.pt")
        assert not torch.equal(one_way, plain)
        edit("openvla-oft", EVALUATE, both, load, reset, imports="import torch\nimport vega3d")
        assert not torch.equal(self.evaluate(None, folder, tmp_path / "both.pt")[0], one_way)

        resume = ("before", "# FiLM setup", block_with("openvla.md", "cfg.vla_path"))
        edit("openvla-oft", FINETUNE, trained_too, resume)
        options = {"resume": True, "resume_step": 2, "max_steps": 4, "learning_rate": 0.0}
        self.finetune(None, folder, tmp_path / "again", **options)
        again = branch_in(tmp_path / "again" / "tiny--4_chkpt" / "lora_adapter" / "adapter_model.safetensors")
        assert through_run.same(again, trained)


@pytest.mark.skipif(installed() != "LLaVA-NeXT", reason="no checkout of LLaVA-NeXT that this environment can import")
class TestLlavaNext:
    base, data, arguments = (getattr(through_run.TestLlavaNext, n) for n in ("base", "data", "arguments"))

    @pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
    def test_training(self, base: Path, data: Path, edit: Edit, tmp_path: Path, lora: bool) -> None:
        mark = "data_module = make_supervised_data_module(tokenizer=tokenizer, data_args=data_args)"
        save = "model.save_pretrained(training_args.output_dir, state_dict=state_dict)"
        edit(
            "LLaVA-NeXT",
            TRAIN,
            ("before", mark, block_with("llava_video.md", "data_args.image_processor")),
            *([("before", save, block_with("llava_video.md", "state_dict |="))] if lora else []),
        )
        out = tmp_path / "llava-qwen-out"
        options = {"mm_tunable_parts": "mm_mlp_adapter,mm_language_model", "lora_enable": lora, "max_steps": 2}
        words = self.arguments(base, data, out, **options)
        through_run.run("llava", "LLaVA-NeXT", None, "llava/train/train_mem.py", *words)
        trained = branch_in(out / ("adapter_model.safetensors" if lora else "model.safetensors"))
        assert bool(trained["fuser.residual_scale"].abs() > 0)
        model = next_model(vocab_size=512).bfloat16()
        vega3d.load_pretrained(model, out)
        mine = {n: t for n, t in vega3d.get_handle(model).branch.state_dict().items() if n != "record"}
        assert through_run.same(mine, trained)
