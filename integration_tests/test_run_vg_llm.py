"""The command that the recipe prints for each checkout, run: VG-LLM's ``train_qwen.py`` on a tiny Qwen2.5-VL.

Of the printed flags those are replaced that name a folder, a number of steps, the size of pictures or a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from host_runs import branch_of, flags, run, same, write_recipe
from host_sources import host_source
from scripts import said
from test_spatial_commands import RECIPE, SCRIPT, commands
from vg_llm import save_base, write_rows


def can_run() -> bool:
    """The script imports names that transformers moved later."""
    import transformers

    return hasattr(transformers.models.qwen2_5_vl.modeling_qwen2_5_vl, "Qwen2_5_VLModel") and hasattr(
        transformers.trainer, "ALL_LAYERNORM_LAYERS"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("host") / "qwen2.5-vl-tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.mark.slow
@pytest.mark.skipif(not can_run(), reason="VG-LLM's script needs transformers 4.50")
@pytest.mark.parametrize("name", ["VG-LLM", "VEGA-3D"])
def test_trains_saves_and_resumes(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    if host_source(name) is None:
        pytest.skip(f"no checkout of {name}: its train_qwen.py was not run")
    out = tmp_path / "out"
    recipe = write_recipe(tmp_path / "r.yaml", "qwen_vl", projector={"name": "avg", "hidden_dim": 64}, space="bilinear")
    printed = commands(RECIPE)[name]
    assert printed.pop("deepspeed")
    replaced: dict[str, object] = {
        "model_name_or_path": base, "output_dir": out, "gradient_accumulation_steps": 1, "max_pixels": 64 * 28 * 28,
        "save_total_limit": 2, "lr_scheduler_type": "constant",
    }  # fmt: skip
    assert {*replaced} <= {*printed}
    replaced |= {"save_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "warmup_ratio": 0}

    def train(steps: int) -> list[str]:
        words = flags(**{**printed, **replaced, "max_steps": steps})
        return said(run("vg", name, recipe, SCRIPT, *words, beside={"data": data}))

    lines = train(2)
    assert f"Qwen2_5_VLForConditionalGeneration from {base} has a new branch" in lines[0]
    # The branch lies in the vision tower, whose rate is printed as the branch's.
    assert any("AdamW: the branch" in line and "lr 1e-05" in line for line in lines)
    first = branch_of(out)
    assert bool(first["fuser.residual_scale"].abs() > 0)
    assert same(branch_of(out / "checkpoint-2"), first)
    # The script finds its own checkpoint and goes on from there.
    lines = train(4)
    assert f"Qwen2_5_VLForConditionalGeneration from {base} has the branch of {out / 'checkpoint-2'}" in lines
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4
    last = branch_of(out)
    assert not same(last, first)
    # At this rate bfloat16 would lose most steps: what trains is held in float32.
    assert all(tensor.dtype == torch.float32 for key, tensor in last.items() if key != "record")
