"""Checkpoints of the released code: what is read from them, in every layout they come in, and what is refused."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import goldens
from support.released import LLAVA, TOWER, RecordedTower, llava_tensors, qwen_tensors, shards, write
from torch import Tensor

import vega3d
from vega3d_plugin.checkpoints.released.loading import convert_released, read_released
from vega3d_plugin.contracts.errors import PatchError, SavedBranchError
from vega3d_plugin.contracts.prompts import PromptReading
from vega3d_plugin.contracts.settings import FusionSettings

TOLERANCE = 1e-4


@pytest.fixture
def golden(tmp_path: Path):
    """The golden model's checkpoint in the released layout, and a host with other weights."""
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    golden = goldens.load("sr_qwen_e2e")
    name = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGenerationWithGenerative"]}
    folder = write(tmp_path / "released", golden.weights, {**golden.info["config"], **name})
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return golden, folder, Qwen2_5_VLForConditionalGeneration(config).float().eval()


def logits(golden: goldens.Golden, model: torch.nn.Module) -> Tensor:
    batch = {k: golden.inputs[k] for k in ("input_ids", "pixel_values", "image_grid_thw")}
    with torch.no_grad():
        return model(**batch, position_ids=golden.outputs["position_ids"]).logits


def test_the_reference_vector_passes(golden, caplog: pytest.LogCaptureFixture) -> None:
    vector, folder, model = golden
    before = logits(vector, model)
    with caplog.at_level(logging.INFO, "vega3d"):
        assert vega3d.load_released(model, folder, prior=RecordedTower(vector.inputs["tower_feat"])) is model
    assert goldens.error(logits(vector, model), vector.outputs["logits"]) < TOLERANCE
    with vega3d.disabled(model):
        off = logits(vector, model)
    assert goldens.error(off, vector.outputs["logits_without_generative"]) < TOLERANCE
    assert not torch.allclose(before, off, atol=1e-2)
    branch = sum("generative_" in key for key in vector.weights)
    assert f"Loaded {branch} tensors of the branch and {len(vector.weights) - branch} weights" in caplog.text
    settings = vega3d.get_handle(model).settings
    assert settings.fusion.init == "released"
    assert settings.projector.hidden_dim == 48


def test_the_branch_alone(golden) -> None:
    vector, folder, model = golden
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prior = RecordedTower(vector.inputs["tower_feat"])
    vega3d.load_released(model, folder, prior=prior, host_weights=False)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    weight = vega3d.get_handle(model).branch.projector.state_dict()["mlp.0.weight"]
    assert torch.equal(weight, vector.weights["generative_merger.mlp.0.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_with_an_index(golden, name: str) -> None:
    vector, folder, model = golden
    (folder / "model.safetensors").unlink()
    shards(folder, vector.weights, save_file if name.startswith("model") else torch.save, name)
    vega3d.load_released(model, folder, prior=RecordedTower(vector.inputs["tower_feat"]))
    assert goldens.error(logits(vector, model), vector.outputs["logits"]) < TOLERANCE
    gone = next(folder.glob("*-00002-of-*"))
    gone.unlink()
    with pytest.raises(SavedBranchError, match=rf"incomplete.*{gone.name}"):
        read_released(folder)


def test_keys_that_do_not_fit_change_nothing(golden) -> None:
    vector, folder, model = golden
    lacking = dict(vector.weights)
    lacking.pop("lm_head.weight")
    lacking["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    write(folder, {**lacking, "ground_head.weight": torch.zeros(2)}, None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prior = RecordedTower(vector.inputs["tower_feat"])
    with pytest.raises(SavedBranchError) as error:
        vega3d.load_released(model, folder, prior=prior)
    for part in (r"not in the checkpoint (1): lm_head.weight", "(1): ground_head.weight", "[3, 3], model [48, 32]"):
        assert part in str(error.value)
    assert not vega3d.is_patched(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    write(folder, {**vector.weights, "ground_head.weight": torch.zeros(2)}, None)
    vega3d.load_released(model, folder, prior=prior, ignore=["ground_head."])
    assert vega3d.is_patched(model)


def test_weights_that_break_off_leave_no_branch(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.checkpoints.released import loading as released

    def broken(pairs) -> int:
        raise OSError("the disk is gone")

    vector, folder, model = golden
    names = list(model.state_dict())
    monkeypatch.setattr(released, "load_host_weights", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        vega3d.load_released(model, folder, prior=RecordedTower(vector.inputs["tower_feat"]))
    assert not vega3d.is_patched(model)
    assert list(model.state_dict()) == names


def test_a_checkpoint_saved_with_its_tower(golden) -> None:
    """The frozen tower is a submodule there, so its weights come along; they are the prior's, and left."""
    vector, folder, model = golden
    tower = {"generative_encoder.tower.model.blocks.0.norm.weight": torch.zeros(4)}
    write(folder, {**vector.weights, **tower}, None)
    assert read_released(folder).skipped == list(tower)
    vega3d.load_released(model, folder, prior=RecordedTower(vector.inputs["tower_feat"]))
    assert goldens.error(logits(vector, model), vector.outputs["logits"]) < TOLERANCE


def test_inside_peft_the_host_is_refused(golden) -> None:
    from peft import LoraConfig, get_peft_model

    vector, folder, model = golden
    prior = RecordedTower(vector.inputs["tower_feat"])
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(PatchError, match="before get_peft_model, or pass host_weights=False"):
        vega3d.load_released(peft, folder, prior=prior)
    vega3d.load_released(peft, folder, prior=prior, host_weights=False)
    assert vega3d.is_patched(peft)


def test_what_the_qwen_branch_was_trained_with(tmp_path: Path) -> None:
    released = read_released(write(tmp_path / "a", qwen_tensors(), {**TOWER, "hidden_size": 16}))
    settings = vega3d.BranchSettings.parse(released.inferred.settings)
    assert settings.to_dict() == {
        **vega3d.BranchSettings().to_dict(),
        "prior": settings.prior.to_dict(),
        "fusion": {**settings.fusion.to_dict(), "name": "token_gated_residual", "init": "released"},
        "projector": {"name": "mlp", "hidden_dim": 8},
    }
    prior = settings.prior
    assert (prior.name, prior.preset, prior.tap, prior.size) == ("wan2.1-t2v-1.3b", "released", -1, (480, 832))
    assert (prior.timestep, prior.shift, prior.context) == (300, 5.0, "frame")
    assert released.inferred.merge == 2
    assert released.inferred.notes == []


def test_what_the_llava_branch_was_trained_with(tmp_path: Path) -> None:
    released = read_released(write(tmp_path / "a", llava_tensors(), LLAVA))
    settings = vega3d.BranchSettings.parse(released.inferred.settings)
    prior = settings.prior
    # The task is left at its default there; the tower's type decides.
    assert (prior.name, prior.tap, prior.size) == ("wan2.1-t2v-1.3b", 20, (720, 1280))
    assert (settings.space, settings.projector.name, settings.projector.hidden_dim) == (
        "adaptive_avg",
        "mlp2x_gelu",
        16,
    )
    assert (settings.fusion.name, settings.fusion.init) == ("token_gated", "released")
    assert (released.layout.host, released.inferred.merge) == ("llava_video", 1)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("mm_projector.bin", "model."),
        ("non_lora_trainables.bin", "base_model.model.model."),
        ("pytorch_model.bin", "model."),
        ("model.safetensors", "module.model."),
    ],
)
def test_files_and_prefixes(tmp_path: Path, name: str, prefix: str) -> None:
    tensors = {**llava_tensors(prefix=prefix), f"{prefix}mm_projector.0.weight": torch.zeros(2, 2)}
    folder = write(tmp_path / "a", tensors, None, name)
    for source in (folder, folder / name):
        released = read_released(source)
        assert set(released.tensors) >= {"projector.0.weight", "projector.2.bias", "fuser.gate_projection.0.weight"}
        assert list(released.host_weights) == [f"{prefix}mm_projector.0.weight"]
        assert not released.full
        # Without config.json, the settings of the released scripts.
        prior = released.inferred.settings["prior"]
        assert (prior["tap"], prior["size"]) == (20, (720, 1280))
        assert "not recorded" in released.inferred.notes[0]


@pytest.mark.parametrize("merger", ["mlp", "avg"])
@pytest.mark.parametrize("fusion", vega3d.list_fusers())
def test_every_fusion_and_projector_is_told_by_its_tensors(tmp_path: Path, fusion: str, merger: str) -> None:
    nothing = fusion in ("add", "only")
    config = {**TOWER, "generative_fusion_attention_heads": 2}
    if nothing:
        config["generative_fusion_method"] = fusion
    released = read_released(write(tmp_path / "a", qwen_tensors(fusion, merger), config))
    found = released.inferred.settings
    # One method of the released code has two names.
    name = {"instruction_token_gated": "context_gated"}.get(fusion, fusion)
    assert (found["fusion"]["name"], found["projector"]["name"]) == (name, merger)
    assert released.inferred.feature_dim == 1536
    # What was assumed is said.
    assert any("instruction" in note for note in released.inferred.notes) is (name == "context_gated")
    # What is built of these settings takes the tensors.
    fuser = vega3d.build_fuser(fusion, 16, **FusionSettings.parse(found["fusion"]).options_for())
    fuser.load_state_dict(goldens.below(released.tensors, "fuser."))
    if nothing:
        (tmp_path / "a" / "config.json").unlink()
        with pytest.raises(SavedBranchError, match=r"no tensors generative_fusion\.\*"):
            read_released(tmp_path / "a")


def test_which_words_make_an_instruction_is_read_from_the_config(tmp_path: Path) -> None:
    config = {
        **TOWER, "instruction_tail_keep_tokens": 12, "instruction_relation_boost": 3.0,
        "instruction_relation_token_ids": [5, 9], "instruction_template_token_ids": [7],
    }  # fmt: skip
    released = read_released(write(tmp_path / "a", qwen_tensors("context_gated"), config))
    assert not any("instruction" in note for note in released.inferred.notes)
    fusion = released.inferred.settings["fusion"]
    fuser = vega3d.build_fuser("context_gated", 16, **fusion["options"])
    assert fuser.reading == PromptReading((5, 9), (7,), 3.0, 12)
    config["instruction_relation_token_ids"] = ["left"]
    with pytest.raises(SavedBranchError, match=r"config.json: instruction_relation_token_ids is .*left"):
        read_released(write(tmp_path / "b", qwen_tensors("context_gated"), config))


def test_the_released_names_of_one_parameter(tmp_path: Path) -> None:
    tensors = qwen_tensors("weighted")
    tensors["generative_fusion.weight_3d"] = tensors.pop("generative_fusion.weight_gen").reshape(())
    released = read_released(write(tmp_path / "a", tensors, TOWER))
    assert released.tensors["fuser.weight_gen"].shape == (1,)


@pytest.mark.parametrize(
    ("tower", "prior"),
    [
        (
            {"generative_encoder_tower_type": "wan_vace_online", "generative_vision_tower_task": None},
            "wan2.1-vace-1.3b",
        ),
        ({"generative_encoder_tower_type": "wan_vace_online"}, "wan2.1-t2v-1.3b"),
        ({"generative_encoder_tower_type": "sd21_online"}, "sd2.1"),
        ({"generative_encoder_tower_type": "svd_online"}, "svd"),
        ({"generative_encoder_tower_type": "vjepa_online"}, "vjepa2-vitg"),
        ({"generative_encoder_tower_type": "dinov3_online"}, "dinov3-vitl"),
        ({"generative_encoder_tower_type": "vggt_online"}, "vggt"),
        ({"generative_encoder_tower_type": "vae_online"}, "sd2.1-vae"),
    ],
)
def test_every_tower_is_a_prior(tmp_path: Path, tower: dict[str, Any], prior: str) -> None:
    from vega3d_plugin.plugins import plugin_manager

    spec = plugin_manager().priors.get(prior)
    assert spec.feature_dim is not None
    released = read_released(write(tmp_path / "a", qwen_tensors(dim=spec.feature_dim), {**TOWER, **tower}))
    found = vega3d.PriorSettings.parse(released.inferred.settings["prior"])
    assert (found.name, found.preset) == (prior, "released")
    if prior == "sd2.1":
        from vega3d_plugin.priors.load import resolve

        # The Qwen branch runs it at timestep 1 whatever is asked for, the LLaVA branch at what is asked for.
        assert resolve(found).timestep == 1
        llava = {**LLAVA, "generative_vision_tower_type": "sd21_online", "generative_vision_tower_timestep": 250}
        tensors = llava_tensors()
        tensors["model.generative_projector.0.weight"] = torch.zeros(16, 1280)
        other = read_released(write(tmp_path / "b", tensors, llava)).inferred.settings["prior"]
        assert resolve(vega3d.PriorSettings.parse(other)).timestep == 250


def test_a_file_without_a_branch(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"model.layers.0.weight": torch.zeros(2)}, TOWER)
    with pytest.raises(SavedBranchError, match=r"no tensors named.*generative_merger.*among 1"):
        read_released(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SavedBranchError, match="Found: nothing"):
        read_released(empty)
    with pytest.raises(SavedBranchError, match="does not exist"):
        read_released(tmp_path / "nowhere" / "at" / "all")


def test_contradictions_are_told_with_both_sides(tmp_path: Path) -> None:
    config = {**TOWER, "generative_fusion_method": "concat"}
    with pytest.raises(SavedBranchError, match=r"'concat', but its tensors are those of 'token_gated_residual'"):
        read_released(write(tmp_path / "a", qwen_tensors(), config))
    with pytest.raises(SavedBranchError, match=r"hidden_size=3584, but its tensors are those of 16"):
        read_released(write(tmp_path / "b", qwen_tensors(), {**TOWER, "hidden_size": 3584}))
    with pytest.raises(SavedBranchError, match="stand beside the semantic ones"):
        read_released(write(tmp_path / "c", llava_tensors(), {**LLAVA, "use_feat_fusion": False}))
    tensors = qwen_tensors()
    del tensors["generative_merger.mlp.2.bias"]
    with pytest.raises(SavedBranchError, match=r"(?s)generative_merger\.\* does not fit.*mlp\.2\.bias"):
        read_released(write(tmp_path / "d", tensors, TOWER))
    tensors = {**qwen_tensors(), "generative_fusion.norm3.weight": torch.zeros(16)}
    with pytest.raises(SavedBranchError, match=r"(?s)generative_fusion\.\* does not fit.*norm3"):
        read_released(write(tmp_path / "e", tensors, TOWER))


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "mm_projector.bin").write_bytes(pickle.dumps({"model.generative_projector.0.weight": Bomb()}))
    with pytest.raises(SavedBranchError, match="cannot be read as plain weights"):
        read_released(tmp_path)
    torch.save({"model.generative_projector.0.weight": Bomb()}, tmp_path / "mm_projector.bin")
    with pytest.raises(SavedBranchError, match="cannot be read as plain weights"):
        read_released(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_prior_that_is_not_known_must_be_given(golden) -> None:
    vector, folder, model = golden
    with pytest.raises(SavedBranchError, match=r"20 channels: pass prior="):
        vega3d.load_released(model, folder)
    with pytest.raises(SavedBranchError, match=r"20 channels, the prior 'tiny-wan' gives 96"):
        vega3d.load_released(model, folder, prior="tiny-wan")
    assert not vega3d.is_patched(model)
    assert vector.weights


def test_converted_is_what_loading_and_saving_gives(tmp_path: Path) -> None:
    from vega3d_qwen_vl.tiny import tiny_model

    model = tiny_model(hidden_size=64)
    torch.manual_seed(1)
    projector = vega3d.build_projector("mlp", 96, 64, hidden_dim=24)
    fuser = vega3d.build_fuser("token_gated", 64)
    tensors = {f"generative_merger.{k}": v for k, v in projector.state_dict().items()}
    tensors |= {f"generative_fusion.{k}": v for k, v in fuser.state_dict().items()}
    source = write(tmp_path / "released", tensors, {"generative_encoder_tower_type": "of-ours"})
    vega3d.load_released(model, source, prior="tiny-wan")
    vega3d.save_pretrained(model, tmp_path / "saved")
    convert_released(source, tmp_path / "converted", prior="tiny-wan", fingerprint=True)
    ours = json.loads((tmp_path / "converted" / "vega3d_config.json").read_text())
    assert ours == json.loads((tmp_path / "saved" / "vega3d_config.json").read_text())
    saved, converted = (load_file(tmp_path / name / "vega3d.safetensors") for name in ("saved", "converted"))
    assert {key: tensor.tolist() for key, tensor in saved.items()} == {k: t.tolist() for k, t in converted.items()}


def test_without_a_fingerprint_any_weights_of_the_prior_are_taken(tmp_path: Path) -> None:
    from vega3d_qwen_vl.tiny import tiny_model

    source = write(tmp_path / "released", qwen_tensors(dim=96, size=64), None)
    convert_released(source, tmp_path / "converted", prior="tiny-wan")
    record = json.loads((tmp_path / "converted" / "vega3d_config.json").read_text())
    assert record["prior"]["fingerprint"] is None
    model = vega3d.load_pretrained(tiny_model(), tmp_path / "converted")
    assert vega3d.get_handle(model).settings.fusion.name == "token_gated_residual"
