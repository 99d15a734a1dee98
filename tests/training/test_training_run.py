"""What a run knows beside its data: the parts of a model, the shares in the log, its output folder and its manifest."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vega3d
from vega3d_llava_video import tiny_transformers as llava
from vega3d_plugin.branch.blocks import open_blocks
from vega3d_plugin.contracts.errors import SavedBranchError, SettingsError, TrainError, Vega3dWarning
from vega3d_plugin.recipes.blocks import TrainSettings, TuneSettings
from vega3d_plugin.recipes.library import read_recipe
from vega3d_plugin.recipes.schema import HostSettings, RecipeSettings
from vega3d_plugin.training import manifest as run_manifest
from vega3d_plugin.training.data import read_data
from vega3d_plugin.training.manifest import (
    check_going_on,
    check_output,
    check_same_run,
    checkpoints,
    find_checkpoint,
    read_manifest,
)
from vega3d_plugin.training.model.building import check_host, holds_master_weights, load, prepare, uses_bf16
from vega3d_plugin.training.model.parts import by_part, optimiser_groups, part_of
from vega3d_plugin.training.model.shares import KINDS, ShareMonitor, share_logs
from vega3d_plugin.training.rows.files import Rows
from vega3d_qwen_vl import tiny as qwen

SMOKE = "qwen_vl/smoke"
PROJECTOR = {"name": "mlp", "hidden_dim": 64}


def recipe(*overrides: str) -> RecipeSettings:
    return read_recipe(SMOKE, overrides)


def train_of(settings: RecipeSettings) -> TrainSettings:
    assert settings.train is not None
    return settings.train


def prepared(*overrides: str) -> Any:
    settings = recipe(*overrides)
    return prepare(settings, train_of(settings))


def trains(model: nn.Module) -> set[str]:
    return {part for part, parameters in by_part(model).items() if any(p.requires_grad for _, p in parameters)}


# Parts


@pytest.mark.parametrize("family", [*qwen.available_families(), *llava.CLASSES])
def test_every_parameter_belongs_to_the_part_it_should(family: str) -> None:
    ours = family in qwen.CLASSES
    model = qwen.tiny_model(family) if ours else llava.tiny_model(family)
    vega3d.patch(model, "tiny-wan", projector=PROJECTOR)
    parts = by_part(model)
    assert sum(map(len, parts.values())) == len(list(model.named_parameters()))
    branch = {id(p) for p in vega3d.get_handle(model).parameters()}
    assert {id(p) for _, p in parts["branch"]} == branch
    tower, projector = ("visual", "merger") if ours else ("vision_tower", "multi_modal_projector")
    assert parts["vision"]
    assert all(
        tower in name.split(".") or "image_tower" in name or "video_tower" in name for name, _ in parts["vision"]
    )
    assert parts["projector"]
    assert all(projector in name or name.endswith("image_newline") for name, _ in parts["projector"])
    assert not [n for n, _ in parts["language"] if any(word in n for word in ("visual", "tower", projector, "vega3d"))]
    assert any("layers" in name for name, _ in parts["language"])


def test_parts_are_told_apart_inside_peft() -> None:
    assert part_of("base_model.model.model.visual.vega3d.modules_to_save.default.fuser.gate.weight") == "branch"
    assert part_of("base_model.model.model.visual.merger.mlp.0.weight") == "projector"
    assert part_of("base_model.model.model.visual.blocks.0.attn.qkv.weight") == "vision"
    assert (
        part_of("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight") == "language"
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"language", "branch"}),
        (("lora=null", "tune=null"), {"language", "branch"}),
        (("lora=null", "tune={vision: full, projector: full}"), {"vision", "projector", "language", "branch"}),
        (("lora=null", "tune={language: frozen}"), {"branch"}),
        (("tune={branch: frozen}",), {"language"}),
        (("prior=null",), {"language"}),
        (("tune={projector: full}",), {"projector", "language", "branch"}),
    ],
)
def test_what_the_recipe_names_trains_and_nothing_else(overrides: tuple[str, ...], expected: set[str]) -> None:
    frozen = pytest.warns(Vega3dWarning, match="tune.branch is frozen and the branch is new")
    with frozen if "tune={branch: frozen}" in overrides else nullcontext():
        model = prepared(*overrides).model
    assert trains(model) == expected
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert all(part_of(name) == "language" for name in lora)
    assert bool(lora) == ("lora=null" not in overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("tune={vision: lora}",), "tune.vision is lora, but lora.target_modules matches nothing in it"),
        (("tune={vision: full}",), "Write tune.vision: lora"),
        (
            ('lora.target_modules=["qkv", "q_proj"]', "tune={language: lora}"),
            "tune.vision is frozen, but lora.target_modules matches",
        ),
        (('lora.target_modules=["qkv"]', "tune={vision: lora, language: frozen}"), ""),
    ],
)
def test_a_recipe_that_does_not_fit_the_model(overrides: tuple[str, ...], message: str) -> None:
    if not message:
        assert trains(prepared(*overrides).model) == {"vision", "branch"}
        return
    with pytest.raises(TrainError) as caught:
        prepared(*overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "model"), [("llava_video", "some/llava"), ("openvla", "some/vla"), ("openvla", "tiny")]
)
def test_a_host_that_only_its_own_script_trains(adapter: str, model: str) -> None:
    with pytest.raises(TrainError, match=rf"host\.adapter: {adapter}: .*none of this host's.*vega3d run --recipe"):
        check_host(HostSettings(adapter=adapter, model=model))


def test_a_host_without_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vega3d_plugin.training.model.building.tiny_host", lambda _: None)
    with pytest.raises(TrainError, match="the adapter 'qwen_vl' has no small model"):
        check_host(HostSettings(adapter="qwen_vl", model="tiny"))


@pytest.mark.parametrize("adapter", ["qwen_vl", "llava_transformers"])
@pytest.mark.parametrize("model", ["some/model", "tiny"])
def test_hosts_of_transformers(adapter: str, model: str) -> None:
    check_host(HostSettings(adapter=adapter, model=model))


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(SettingsError, match="matches no module"):
        prepared('lora.target_modules=["qq_proj"]')


def test_each_part_has_its_own_rate_and_no_parameter_is_in_two_groups() -> None:
    ready = prepared(
        "lora=null", "tune={vision: {mode: full, learning_rate: 2e-6}, branch: {mode: full, learning_rate: 0.1}}"
    )
    decayed = [name for name, p in ready.model.named_parameters() if p.ndim > 1]
    groups = optimiser_groups(ready.model, ready.parts, 1e-5, 0.01, decayed)
    rates = {group["part"]: group["lr"] for group in groups}
    assert rates == {"vision": 2e-6, "language": 1e-5, "branch": 0.1}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in ready.model.parameters() if p.requires_grad}
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


def test_what_trains_is_held_in_float32() -> None:
    settings = recipe("host.dtype=bfloat16")
    train = train_of(settings)
    assert uses_bf16(settings, train)
    assert holds_master_weights(settings, train)
    model = prepare(settings, train).model
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    deep = recipe("host.dtype=bfloat16", "train.deepspeed=ds.json")
    assert not holds_master_weights(deep, train_of(deep))


def test_the_bounds_of_a_picture_reach_the_processor() -> None:
    from PIL import Image

    picture = Image.new("RGB", (280, 280))
    grids = []
    for most in (112 * 112, 56 * 56):
        _, processor = load(HostSettings(adapter="qwen_vl", model="tiny", dtype="float32", max_pixels=most))
        text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
        grids.append(processor(text=[text], images=[picture], return_tensors="pt")["image_grid_thw"].tolist())
    assert grids == [[[1, 8, 8]], [[1, 4, 4]]]


def test_new_weights_are_the_same_every_time() -> None:
    first, second = prepared(), prepared()
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    other = prepared("train.seed=1")
    assert not all(torch.equal(a, b) for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True))


# Shares


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    settings = recipe()
    assert settings.data is not None
    data = read_data(qwen.tiny_processor(), settings.data.files, frames=4)
    return data.collator([data[i] for i in range(len(data))])


def test_shares_in_the_log_are_those_that_were_used(batch: dict[str, torch.Tensor]) -> None:
    fusion = {"init": "released", "options": {"residual_scale": 0.2}}
    views = {"images": "scene", "context": "views"}
    model = vega3d.patch(qwen.tiny_model(), "tiny-wan", projector=PROJECTOR, fusion=fusion, **views).eval()
    with vega3d.record_shares(model) as shares, torch.no_grad():
        model(**batch)
    model.train()
    with ShareMonitor(model) as monitor:
        model(**batch)
        totals = monitor.take(torch.device("cpu"))
        model(**batch)
        model(**batch)
        logs = share_logs(monitor.take(torch.device("cpu")))
        assert not bool(monitor.take(torch.device("cpu")).any())
    every = torch.cat([share.generative.flatten() for share in shares]).double()
    gates = torch.cat([share.gate.flatten() for share in shares]).double()
    changes = torch.cat([share.change.flatten() for share in shares]).double()
    kinds = {key.split("/")[1] for key in logs if key.startswith("share/")}
    assert {"video"} < kinds <= set(KINDS)
    # Means of the kinds, weighted, are the mean of all.
    for index, values in enumerate((every, changes, gates)):
        count, total, squares = totals[:, index].sum(dim=0)
        assert float(count) == values.numel()
        torch.testing.assert_close(total / count, values.mean(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(squares, (values**2).sum(), rtol=1e-5, atol=1e-5)
    for kind in kinds:
        assert logs[f"share/{kind}/host"] == pytest.approx(1 - logs[f"share/{kind}/generative"])
        assert logs[f"share/{kind}/generative"] == pytest.approx(0.2 * (1 - logs[f"gate/{kind}/mean"]), rel=1e-5)
        assert logs[f"change/{kind}"] > 0
    assert logs["branch/a"] == pytest.approx(0.2)


def test_the_log_of_a_fresh_branch_says_that_it_changes_nothing(batch: dict[str, torch.Tensor]) -> None:
    model = vega3d.patch(qwen.tiny_model(), "tiny-wan", projector=PROJECTOR).train()
    with ShareMonitor(model) as monitor:
        model(**batch)
        logs = share_logs(monitor.take(torch.device("cpu")))
    assert logs["branch/a"] == 0
    for name, value in logs.items():
        if name.startswith(("share/", "change/")):
            assert value == (1 if name.endswith("/host") else 0), name


def test_the_monitor_leaves_no_trace(batch: dict[str, torch.Tensor]) -> None:
    model = vega3d.patch(qwen.tiny_model(), "tiny-wan", projector=PROJECTOR).train()
    branch = vega3d.get_handle(model).branch
    before = len(branch._forward_hooks), len(branch._forward_pre_hooks)
    with ShareMonitor(model) as monitor:
        model(**batch)
        once = monitor.take(torch.device("cpu"))
        # Someone else's recording is not taken away, nor this one.
        with vega3d.record_gates(model) as gates:
            model(**batch)
        assert len(gates) > 0
        assert torch.equal(monitor.take(torch.device("cpu"))[..., 0], once[..., 0])
    assert (len(branch._forward_hooks), len(branch._forward_pre_hooks)) == before
    assert open_blocks(branch.key) == []


def test_a_fuser_without_a_gate_is_watched_too(batch: dict[str, torch.Tensor]) -> None:
    model = vega3d.patch(qwen.tiny_model(), "tiny-wan", projector=PROJECTOR, fusion="add").train()
    with ShareMonitor(model) as monitor:
        model(**batch)
        logs = share_logs(monitor.take(torch.device("cpu")))
    assert {name.split("/")[0] for name in logs} == {"share", "change"}


def test_nothing_to_watch(batch: dict[str, torch.Tensor]) -> None:
    model = qwen.tiny_model().train()
    with ShareMonitor(model) as monitor:
        model(**batch)
        assert share_logs(monitor.take(torch.device("cpu"))) == {}


# The output folder


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    return Rows([path])


@pytest.fixture
def output(tmp_path: Path, rows: Rows) -> Path:
    """A folder with two whole checkpoints, and one that is not."""
    folder = tmp_path / "out"
    model = qwen.tiny_model()
    made = run_manifest.make_manifest(SMOKE, recipe(), model, rows, skipped=0, world=1)
    for step in (2, 10, 30):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if step != 30:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
            run_manifest.write_manifest(folder / f"checkpoint-{step}", made, step=step)
    run_manifest.write_manifest(folder, made)
    return folder


def test_a_folder_of_another_run_is_refused(output: Path) -> None:
    with pytest.raises(TrainError, match=r"holds another run \(recipe qwen_vl/smoke, last checkpoint checkpoint-10\)"):
        check_output(output)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(TrainError, match=r"is not empty \(found holiday.jpg\)"):
        check_output(tmp_path)
    with pytest.raises(TrainError, match="is a file"):
        check_output(tmp_path / "holiday.jpg")
    check_output(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")


def test_a_run_goes_on_in_its_own_folder_alone(output: Path, rows: Rows, tmp_path: Path) -> None:
    check_going_on(output, recipe(), rows)
    check_going_on(tmp_path / "new", recipe(), rows)
    with pytest.raises(TrainError, match=r"of another recipe[\s\S]*lora\.r: 4 there, 8 here"):
        check_going_on(output, recipe("lora.r=8"), rows)
    # Also where it has not come to a checkpoint.
    for step in (2, 10):
        (output / f"checkpoint-{step}" / "trainer_state.json").unlink()
    check_going_on(output, recipe(), rows)
    with pytest.raises(TrainError, match="is of another recipe"):
        check_going_on(output, recipe("lora.r=8"), rows)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.jpg").touch()
    with pytest.raises(TrainError, match="is not empty"):
        check_going_on(tmp_path / "pictures", recipe(), rows)


def test_an_output_folder_is_no_checkpoint_but_has_some(output: Path, rows: Rows) -> None:
    with pytest.raises(TrainError, match=r"is no checkpoint of a trainer.*; the last is .*checkpoint-10\."):
        check_same_run(output, recipe(), rows)
    with pytest.raises(SavedBranchError, match=r"holds no branch.*name a checkpoint in it, such as .*checkpoint-30\."):
        vega3d.load_pretrained(qwen.tiny_model(), output)


def test_only_whole_checkpoints_count_and_in_order_of_their_steps(output: Path) -> None:
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-10"]
    assert find_checkpoint(output) == output / "checkpoint-10"
    assert find_checkpoint(output / "nowhere") is None


def test_a_checkpoint_of_another_recipe_is_told_setting_by_setting(output: Path, rows: Rows) -> None:
    checkpoint = output / "checkpoint-2"
    check_same_run(checkpoint, recipe(), rows)
    # Where things are and how much is written may change.
    check_same_run(checkpoint, recipe("train.save_steps=1", "train.output_dir=x", "data.workers=3"), rows)
    with pytest.raises(TrainError) as caught:
        check_same_run(checkpoint, recipe("prior.tap=1", "lora.r=8", "train.learning_rate=1e-4"), rows)
    text = str(caught.value)
    assert "is of another recipe" in text
    for line in ("prior.tap: 2 there, 1 here", "lora.r: 4 there, 8 here", "train.learning_rate: 0.001 there, 0.0001"):
        assert line in text


def test_a_checkpoint_of_other_data_and_one_of_nobodys(output: Path, rows: Rows, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(TrainError, match="data: 2 rows in files of 18 bytes there, 1 rows in files of 3 bytes here"):
        check_same_run(output / "checkpoint-2", recipe(), Rows([other]))
    (output / "checkpoint-2" / run_manifest.RUN_FILE).unlink()
    with pytest.raises(TrainError, match="was not written by `vega3d train`"):
        check_same_run(output / "checkpoint-2", recipe(), rows)
    with pytest.raises(TrainError, match="it has no trainer_state"):
        check_same_run(output / "checkpoint-30", recipe(), rows)


def test_the_manifest_says_what_a_run_was(output: Path) -> None:
    found = read_manifest(output / "checkpoint-2")
    assert found["step"] == 2
    assert found["seeds"] == {"train": 0, "prior": 0}
    assert RecipeSettings.parse(found["settings"]) == recipe()
    import transformers

    assert found["versions"]["transformers"] == transformers.__version__
    assert found["data"]["files"][0]["rows"] == 2
    commit = run_manifest.git_state(Path(__file__).parent)
    assert found["git"]["library"] == commit
    assert commit is None or len(commit["commit"]) == 40


def test_outside_of_a_repository_there_is_no_state_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_manifest.git_state(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 99})])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / run_manifest.RUN_FILE).write_text(text)
    with pytest.raises(TrainError, match=run_manifest.RUN_FILE):
        read_manifest(tmp_path)


# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"branch": "lora"}, "branch.mode"),
        ({"vision": {"mode": "frozen", "learning_rate": 1e-3}}, "a frozen part has no learning_rate"),
        ({"visoin": "full"}, "Did you mean 'vision'"),
    ],
)
def test_wrong_tune_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TuneSettings.parse(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "step"}, "`schedule: step` needs `decay_steps`"),
        ({"decay_steps": 3}, "`decay_steps: null` removes it"),
        ({"per_device_batch_size": 3}, "batch_size 4 is not a multiple of per_device_batch_size 3"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_wrong_train_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings.parse({"learning_rate": 1e-3, "batch_size": 4, **values})
