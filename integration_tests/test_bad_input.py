"""What a user can get wrong around a host: a typed error that says what to do, and the model as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
from hosts import Host, freeze_host, logits, patch, train
from safetensors.torch import save_file
from torch import nn

import vega3d
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.contracts import errors

QWEN = hosts.named("qwen2_5_vl")


@pytest.fixture
def host() -> Host:
    return QWEN


def untouched(model: nn.Module, action: Callable[[], Any], error: type[Exception], match: str) -> str:
    """The action raises, and leaves nothing behind."""
    keys = list(model.state_dict())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(error, match=match) as caught:
        action()
    assert list(model.state_dict()) == keys
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    return str(caught.value)


def test_a_model_that_is_no_host() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    message = untouched(model, lambda: patch(model), errors.HostError, "No host adapter matches")
    assert "Qwen2_5_VLForConditionalGeneration" in message
    assert "vega3d doctor" in message


def test_something_that_is_no_model() -> None:
    with pytest.raises(errors.HostError, match="torch module"):
        vega3d.patch("Qwen/Qwen2.5-VL-7B-Instruct")  # type: ignore[arg-type]


def test_a_host_by_the_wrong_name(host: Host) -> None:
    model = host.build()
    untouched(model, lambda: patch(model, host="qwen-vl"), errors.UnknownNameError, "'qwen_vl'")


def test_a_fuser_that_uses_the_instruction_on_a_host_that_cannot_embed_it(host: Host) -> None:
    model = host.build()
    entry = type(model.model if hasattr(model.model, "visual") else model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entry, "get_input_embeddings", None)
        untouched(
            model,
            lambda: patch(model, fusion="context_gated", init="released"),
            errors.HostError,
            "no get_input_embeddings",
        )


def test_a_host_that_is_not_built_as_its_family(host: Host) -> None:
    model = host.build()
    owner = model.model if hasattr(model.model, "visual") else model
    owner.tower = owner.visual
    del owner.visual
    untouched(model, lambda: patch(model), errors.HostError, r"expects a vision tower at 'model.visual'")


def test_a_compiled_model(host: Host) -> None:
    model = torch.compile(host.build())
    with pytest.raises(errors.Vega3dError, match=r"compiled"):
        patch(model)
    model = host.build()
    model.compile()
    untouched(model, lambda: patch(model), errors.CompiledModelError, "Patch the model first")


def test_a_model_on_meta(host: Host) -> None:
    model = host.build().to("meta")
    untouched(model, lambda: patch(model), errors.MetaModelError, "meta device")


def test_a_wrapped_model(host: Host) -> None:
    model = host.build()
    wrapped = nn.DataParallel(model)
    untouched(model, lambda: patch(wrapped), errors.HostError, "before it is wrapped")


def test_patching_twice(host: Host) -> None:
    model = patch(host.build())
    branch = vega3d.get_handle(model).branch
    assert patch(model) is model
    assert vega3d.get_handle(model).branch is branch
    untouched(model, lambda: patch(model, timestep=500), errors.PatchError, "timestep is 300, asked for 500")
    untouched(model, lambda: patch(model, fusion="add"), errors.PatchError, "fusion.name")
    with pytest.raises(errors.PatchError, match="other settings"):
        vega3d.patch(model, vega3d.load_prior("tiny-wan", seed=5), projector=hosts.PROJECTOR)


def test_unpatching_what_is_not_patched(host: Host) -> None:
    with pytest.raises(errors.PatchError, match="not patched"):
        vega3d.unpatch(host.build())
    with pytest.raises(errors.PatchError, match="not patched"):
        vega3d.get_handle(host.build())


def test_every_wrong_setting_at_once(host: Host) -> None:
    model = host.build()
    config = {"prior": {"name": "tiny-wam", "timestep": 2000}, "fusoin": {}, "projector": {"name": "mpl"}}
    message = untouched(model, lambda: vega3d.patch(model, config=config), errors.SettingsError, "wrong")
    for part in ("prior.name", "tiny-wan", "prior.timestep", "2000", "fusoin", "'fusion'", "projector.name", "'mlp'"):
        assert part in message


def test_unknown_names(host: Host) -> None:
    model = host.build()
    untouched(model, lambda: vega3d.patch(model, "tiny-wann"), errors.Vega3dError, "Did you mean 'tiny-wan'")
    untouched(model, lambda: patch(model, fusion="token_gatd"), errors.Vega3dError, "token_gated")
    untouched(model, lambda: patch(model, timestap=300), errors.Vega3dError, "'timestep'")


def test_identity_where_the_fusion_cannot(host: Host) -> None:
    model = host.build()
    untouched(model, lambda: patch(model, fusion="token_gated"), errors.FusionError, "token_gated_residual")


def test_a_missing_prior_folder(host: Host, tmp_path: Path) -> None:
    model = host.build()
    untouched(
        model, lambda: vega3d.patch(model, pretrained=tmp_path / "Wan2.1"), errors.CheckpointError, "does not exist"
    )


def test_a_store_of_another_prior(host: Host, tmp_path: Path) -> None:
    model = host.build()
    vega3d.FeatureStore(tmp_path).bind(vega3d.load_prior("tiny-wan", seed=3))
    untouched(model, lambda: patch(model, store=tmp_path), errors.StoreError, "fingerprint")
    assert "fingerprint" in json.loads((tmp_path / "store.json").read_text())


def test_wrong_pixel_statistics_are_noticed(host: Host) -> None:
    class Processor:
        image_mean, image_std = [0.5] * 3, [2.0] * 3

    model = patch(host.build(), processor=Processor())
    with pytest.raises(errors.FramesError, match="pixel statistics are wrong"):
        logits(model, host.batch())


def test_a_processor_of_something_else(host: Host) -> None:
    model = host.build()
    untouched(model, lambda: patch(model, processor=object()), errors.HostError, "image_mean")


def test_a_token_grid_that_does_not_match(host: Host) -> None:
    model = patch(host.build())
    branch = vega3d.get_handle(model).branch
    clip = vega3d.Clip(torch.rand(1, 3, 56, 56), vega3d.TokenGrid(1, 2, 2), "image")
    with pytest.raises(errors.AlignmentError, match=r"\[5, 64\].*\(1, 2, 2\).*4 tokens"):
        branch(torch.zeros(5, 64), [clip])


def test_a_prior_that_returns_nonsense(host: Host) -> None:
    class Broken(vega3d.Prior):
        feature_dim, fingerprint = 8, "broken"

        def __init__(self, features: torch.Tensor) -> None:
            self.result = features

        def __call__(self, frames: torch.Tensor) -> torch.Tensor:
            return self.result

    for features, match in [
        (torch.zeros(1, 9, 2, 2), "expected a feature map"),
        (torch.full((1, 8, 2, 2), torch.nan), "NaN"),
    ]:
        model = vega3d.patch(host.build(), Broken(features), projector=hosts.PROJECTOR)
        with pytest.raises(errors.PriorError, match=match):
            logits(model, host.batch())


def test_pixels_with_nan(host: Host) -> None:
    model, batch = vega3d.patch(host.build(), Colours(), projector=hosts.PROJECTOR), host.batch()
    batch["pixel_values"][3, 5] = torch.nan
    with pytest.raises(errors.FramesError, match="pixels with NaN"):
        logits(model, batch)
    with pytest.raises(errors.FramesError, match="NaN"):
        logits(patch(host.build()), batch)


class Colours(vega3d.Prior):
    """A third party's prior that checks nothing."""

    feature_dim, fingerprint = 3, "colours"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(frames, 4)


def test_patching_in_inference_mode_leaves_a_branch_that_trains(host: Host) -> None:
    model = host.build()
    with torch.inference_mode():
        patch(model)
    freeze_host(model)
    train(model, host.batch(), steps=1)


def test_init_reaches_fusion_settings(host: Host) -> None:
    for fusion in ("gated", {"name": "gated"}, vega3d.FusionSettings(name="gated", init="released")):
        model = patch(host.build(), fusion=fusion, init="released")
        assert vega3d.get_handle(model).settings.fusion.init == "released"


def saved(folder: Path, **settings: Any) -> Path:
    return vega3d.save_pretrained(patch(QWEN.build(), **settings), folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the settings of a branch as earlier versions wrote it: nothing in it proves that its files fit."""
    branch = read_saved(folder)
    record = json.loads(json.dumps(branch.record))
    change(record)
    (folder / "vega3d_config.json").write_text(json.dumps(record))
    save_file(branch.tensors, folder / "vega3d.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r["host"].update(name="openvla"), "host 'openvla', this model has 'qwen_vl'"),
        (lambda r: r["host"].update(hidden_size=3584), "hidden size 3584, this model has 64"),
        (lambda r: r["prior"].update(fingerprint="0" * 32), "fingerprint 0000"),
        (lambda r: r.update(format=99), "format 99"),
        (lambda r: r.pop("prior"), "lacks prior"),
        (lambda r: r["settings"]["fusion"].update(name="concat", init="released"), "missing: fuser.projection"),
        (
            lambda r: r["settings"]["projector"].update(hidden_dim=32),
            r"saved \[64, 384\], its settings make \[32, 384\]",
        ),
    ],
)
def test_a_saved_branch_that_does_not_fit(tmp_path: Path, change: Callable, match: str) -> None:
    saved(tmp_path)
    edit(tmp_path, change)
    model = QWEN.build()
    untouched(model, lambda: vega3d.load_pretrained(model, tmp_path), errors.SavedBranchError, match)


def test_another_prior_than_recorded(tmp_path: Path) -> None:
    saved(tmp_path, seed=1)
    model = QWEN.build()

    def load(**options: Any) -> nn.Module:
        return vega3d.load_pretrained(model, tmp_path, **options)

    untouched(model, lambda: load(prior="wan2.1-t2v-1.3b"), errors.SavedBranchError, "allow_prior='wan2.1-t2v-1.3b'")
    untouched(model, lambda: load(seed=2), errors.SavedBranchError, "allow_prior='tiny-wan'")
    untouched(model, lambda: load(prior=vega3d.load_prior("tiny-wan", seed=2)), errors.SavedBranchError, "fingerprint")
    load(prior=vega3d.load_prior("tiny-wan", seed=2), allow_prior="tiny-wan")
    assert vega3d.get_handle(model).settings.prior.seed == 2


def test_folders_without_a_branch(tmp_path: Path) -> None:
    model = QWEN.build()
    load = vega3d.load_pretrained
    untouched(model, lambda: load(model, tmp_path / "none"), errors.SavedBranchError, "does not exist")
    untouched(model, lambda: load(model, tmp_path), errors.SavedBranchError, "holds no branch")
    model.save_pretrained(tmp_path)
    untouched(model, lambda: load(model, tmp_path), errors.SavedBranchError, r"model.safetensors.*modules_to_save")


def test_damaged_files(tmp_path: Path) -> None:
    model = QWEN.build()
    saved(tmp_path)
    weights = tmp_path / "vega3d.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    untouched(model, lambda: vega3d.load_pretrained(model, tmp_path), errors.SavedBranchError, "damaged")
    weights.unlink()
    untouched(model, lambda: vega3d.load_pretrained(model, tmp_path), errors.SavedBranchError, "incomplete")
    (tmp_path / "vega3d_config.json").write_text("{")
    untouched(model, lambda: vega3d.load_pretrained(model, tmp_path), errors.SavedBranchError, "incomplete|readable")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"base_model.model.visual.vega3d.x": Bomb()}, tmp_path / "adapter_model.bin")
    with pytest.raises(errors.SavedBranchError, match="plain weights"):
        vega3d.load_pretrained(QWEN.build(), tmp_path)
    assert not (tmp_path / "exploded").exists()
