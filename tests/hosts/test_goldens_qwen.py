"""The Qwen2.5-VL seam and a whole forward compute what the released fork computes, through the public API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import goldens
from support.released import RecordedTower

import vega3d

TOLERANCE = 1e-4


@pytest.mark.parametrize("case", ["token_gated_residual_mlp", "token_gated_avg", "cross_attention_mlp"])
def test_seam(case: str) -> None:
    golden = goldens.load("sr_seam")
    config = golden.info["config"]
    fusion, _, merger = case.rpartition("_")
    tower = torch.cat([golden.inputs["tower_feat_0"], golden.inputs["tower_feat_1"]])
    weights = goldens.below(golden.weights, f"{case}.")
    projector = vega3d.build_projector(
        merger, config["context_dim"], config["hidden_size"], hidden_dim=config["merger_hidden_dim"]
    )
    projector.load_state_dict(goldens.below(weights, "generative_merger."))
    fuser = vega3d.build_fuser(fusion, config["hidden_size"], num_heads=config["fusion_attention_heads"])
    fuser.load_state_dict(goldens.below(weights, "generative_fusion."))
    branch = branch_of(projector, fuser.eval(), RecordedTower(tower), config["hidden_size"])
    h, w = config["patch_grid"]
    grid = vega3d.TokenGrid(1, h // 2, w // 2)
    clips = [vega3d.Clip(torch.rand(1, 3, 14 * h, 14 * w), grid, "image") for _ in range(3)]
    fused = branch(golden.inputs["image_embeds"], clips)
    assert goldens.error(fused.detach(), golden.outputs[f"fused_{case}"]) < TOLERANCE


def branch_of(projector, fuser, prior: vega3d.Prior, hidden_size: int) -> vega3d.GenerativeBranch:
    statistics = vega3d.PixelStatistics((0.0,) * 3, (1.0,) * 3)
    seam = vega3d.Seam("visual", "", hidden_size, 2, statistics, "family", reader=None)  # type: ignore[arg-type]
    settings = vega3d.BranchSettings(fusion={"name": fuser.name, "init": "released", "num_heads": 4})
    branch = vega3d.GenerativeBranch(settings, prior, seam, "test").eval()
    branch.projector, branch.fuser = projector, fuser
    return branch


@pytest.fixture
def host(tmp_path: Path):
    """The golden model, loaded from a folder as users have it, with the branch's weights as surplus keys."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    golden = goldens.load("sr_qwen_e2e")
    config = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**golden.info["config"], **config}))
    save_file(golden.weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    return golden, model.float().eval()


def test_whole_forward(host) -> None:
    golden, model = host
    info = golden.info["config"]
    batch = {k: golden.inputs[k] for k in ("input_ids", "pixel_values", "image_grid_thw")}
    # Newer transformers take the kind of each token from the processor; the positions are the released ones anyway.
    batch["position_ids"] = golden.outputs["position_ids"]
    with torch.no_grad():
        assert goldens.error(model(**batch).logits, golden.outputs["logits_without_generative"]) < TOLERANCE
    vega3d.patch(
        model,
        RecordedTower(golden.inputs["tower_feat"]),
        fusion={"name": info["generative_fusion_method"], "num_heads": info["generative_fusion_attention_heads"]},
        init="released",
        projector={"name": info["generative_merger_type"], "hidden_dim": info["generative_merger_hidden_dim"]},
    )
    branch = vega3d.get_handle(model).branch
    branch.projector.load_state_dict(goldens.below(golden.weights, "generative_merger."))
    branch.fuser.load_state_dict(goldens.below(golden.weights, "generative_fusion."))
    with torch.no_grad():
        logits = model(**batch).logits
    assert goldens.error(logits, golden.outputs["logits"]) < TOLERANCE
    assert goldens.error(logits, golden.outputs["logits_without_generative"]) > 10 * TOLERANCE
