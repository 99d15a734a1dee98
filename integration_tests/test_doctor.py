"""``vega3d doctor MODEL``: a good host passes every check, and each fault fails the check that is meant for it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import PatchError, SavedBranchError, UnknownNameError
from vega3d_plugin.evaluation.doctor import checks as questions
from vega3d_plugin.evaluation.doctor import examine as doctor
from vega3d_plugin.evaluation.doctor.checks import Baseline, Check
from vega3d_plugin.evaluation.doctor.examine import BRANCH_STEPS, HOST_STEPS, diagnose, examine
from vega3d_plugin.hosts.probing import Probe, make_probe
from vega3d_qwen_vl.tiny import available_families, tiny_model, tiny_processor

FAMILY = "qwen2_5_vl"
OTHER = "qwen3_vl" if "qwen3_vl" in available_families() else "qwen2_vl"
BROKEN_HALF = [0.5, 0.5, 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a family with its processor, saved to a folder."""
    root = tmp_path_factory.mktemp("models")

    def save(family: str) -> Path:
        if not (root / family).exists():
            tiny_model(family).save_pretrained(root / family)
            tiny_processor(family).save_pretrained(root / family)
        return root / family

    return save


@pytest.fixture
def model() -> nn.Module:
    return tiny_model(FAMILY)


@pytest.fixture
def processor() -> Any:
    return tiny_processor(FAMILY)


@pytest.fixture
def probe(model: nn.Module, processor: Any) -> Probe:
    return make_probe(processor, model)


def statuses(checks: Iterator[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def until(name: str, checks: Iterator[Check]) -> dict[str, Check]:
    """The checks up to one, by name; the rest is not run."""
    found: dict[str, Check] = {}
    for check in checks:
        found[check.name] = check
        if check.name == name:
            checks.close()
    return found


def failed(checks: Iterator[Check]) -> list[str]:
    return [check.name for check in checks if check.status == "FAIL"]


# A good host.


@pytest.mark.parametrize("family", [FAMILY, OTHER])
def test_a_good_host_passes_every_check(folder: Callable[[str], Path], family: str) -> None:
    checks = list(diagnose(folder(family)))
    assert [(check.name, check.status) for check in checks] == [(name, "PASS") for name in HOST_STEPS]
    found = {check.name: check.measured for check in checks}
    assert "float32 on cpu" in found["load"]
    assert "tokens of size 64" in found["host"]
    assert "in [0.00, 1.00], off the picture by 0.0000" in found["pixels"]
    assert "image: 1 call" in found["seam"]
    assert "video: 1 call" in found["seam"]
    assert "bit-identical" in found["identity"]


def test_nothing_is_left_behind(model: nn.Module, processor: Any) -> None:
    before = everything(model)
    assert set(statuses(examine(model, processor)).values()) == {"PASS"}
    assert everything(model) == before
    # Also when it is given up half way.
    checks = examine(model, processor)
    assert next(check for check in checks if check.name == "pixels").status == "PASS"
    assert vega3d.is_patched(model)
    checks.close()
    assert everything(model) == before


def everything(model: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [
        (name, sorted(module.__dict__), sorted(module._modules), *[len(getattr(module, hook)) for hook in hooks])
        for name, module in model.named_modules()
    ]


def test_half_precision_is_kept_and_passes(processor: Any, tmp_path: Path) -> None:
    tiny_model(FAMILY).bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    checks = by_name(diagnose(tmp_path))
    assert {check.status for check in checks.values()} == {"PASS"}
    assert "bfloat16 on cpu" in checks["load"].measured


def test_a_processor_that_resizes_passes(model: nn.Module) -> None:
    """The known picture does not come through unchanged, but close enough."""
    check = until("pixels", examine(model, tiny_processor(FAMILY, max_pixels=40 * 28 * 28)))["pixels"]
    assert check.status == "PASS"
    assert "frame 168x168" in check.measured


def test_a_processor_without_a_chat_template_passes(model: nn.Module, processor: Any) -> None:
    processor.chat_template = None
    checks = until("seam", examine(model, processor))
    assert {check.status for check in checks.values()} == {"PASS"}


# Broken hosts: what can be found before the model is there.


def test_a_folder_that_is_not_there(folder: Callable[[str], Path]) -> None:
    missing = folder(FAMILY).with_name(f"{FAMILY}x")
    checks = list(diagnose(missing))
    assert [check.status for check in checks] == ["FAIL"] + ["SKIP"] * (len(HOST_STEPS) - 1)
    assert checks[0].name == "load"
    assert checks[0].measured.startswith(f"The folder {missing} does not exist. Did you mean '{FAMILY}'")


def test_a_hub_id_that_cannot_be_reached() -> None:
    (check, *_) = diagnose("nobody/has-this")
    assert (check.name, check.status) == ("load", "FAIL")
    assert check.measured.startswith("nobody/has-this: no model can be read from it.")


def test_a_model_that_is_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)

    def read_weights(*args: object, **kwargs: object) -> None:
        raise AssertionError("the weights of an unsupported model were read")

    monkeypatch.setattr(doctor, "load_host", read_weights)
    checks = by_name(diagnose(tmp_path))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["host"]
    assert "No host adapter matches" in checks["host"].measured
    assert "GPT2LMHeadModel" in checks["host"].measured
    assert "Qwen2_5_VLForConditionalGeneration" in checks["host"].measured
    assert checks["load"].status == "SKIP"


def test_a_class_that_this_transformers_lacks(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder(FAMILY), tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("Qwen2_5_VLForConditionalGeneration", "Qwen9ForEverything"))
    (check, *_) = diagnose(tmp_path)
    assert (check.name, check.status) == ("load", "FAIL")
    assert f"transformers {transformers.__version__} has no class 'Qwen9ForEverything'" in check.measured


def test_a_class_with_code_elsewhere(tmp_path: Path) -> None:
    """LLaVA's own checkpoints: transformers knows neither their config nor their class, an adapter does."""
    config = {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (check, *_) = diagnose(tmp_path)
    assert (check.name, check.status) == ("load", "FAIL")
    assert f"transformers {transformers.__version__} has no class 'LlavaQwenForCausalLM'" in check.measured
    assert "Host 'llava_video' was tested with transformers 4.50.0, as LLaVA-NeXT" in check.measured
    assert "vega3d_plugin.doctor.examine(model, processor)" in check.measured


def test_a_known_class_that_cannot_be_loaded_names_the_versions(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ImportError("cannot import name 'HybridCache'")

    monkeypatch.setattr(transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", broken)
    (check, *_) = diagnose(folder(FAMILY))
    assert (check.name, check.status) == ("load", "FAIL")
    assert "could not be loaded: ImportError: cannot import name 'HybridCache'" in check.measured
    assert "Host 'qwen_vl' was tested with transformers 4.50.0 and" in check.measured
    # A config that cannot be read, of a class that is there.
    shutil.copytree(folder(FAMILY), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen9"}))
    (check, *_) = diagnose(tmp_path)
    assert "no model can be read from it. ValueError" in check.measured
    assert "Host 'qwen_vl' was tested with" in check.measured


def test_weights_that_are_not_all_there(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder(FAMILY), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("q_proj.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check = until("load", diagnose(tmp_path))["load"]
    assert check.status == "WARN"
    # The file's name may lack the part that transformers 4.52 put in.
    assert "1 tensors are not in the checkpoint and hold random numbers, first model." in check.measured
    assert check.measured.endswith(lost.removeprefix("model."))
    (tmp_path / "model.safetensors").unlink()
    (check, *_) = diagnose(tmp_path)
    assert (check.name, check.status) == ("load", "FAIL")
    assert "could not be loaded" in check.measured


def test_a_folder_without_a_processor(folder: Callable[[str], Path], tmp_path: Path) -> None:
    tiny_model(FAMILY).save_pretrained(tmp_path)
    checks = by_name(diagnose(tmp_path))
    assert {name: check.status for name, check in checks.items()} == {
        **dict.fromkeys(HOST_STEPS, "PASS"),
        "processor": "FAIL",
        **dict.fromkeys(("vision", "pixels", "seam", "branch"), "SKIP"),
    }
    assert "has no processor: neither preprocessor_config.json nor" in checks["processor"].measured
    assert "the family's own mean (0.481, 0.458, 0.408)" in checks["processor"].measured
    assert "on text alone" in checks["identity"].measured
    # The advice works.
    assert "--processor" in checks["processor"].advice
    checks = until("pixels", diagnose(tmp_path, processor=folder(FAMILY)))
    assert checks["processor"].status == checks["pixels"].status == "PASS"


def test_a_folder_with_a_tokenizer_alone(tmp_path: Path) -> None:
    tiny_model(FAMILY).save_pretrained(tmp_path)
    tiny_processor(FAMILY).tokenizer.save_pretrained(tmp_path)
    assert until("processor", diagnose(tmp_path))["processor"].status == "FAIL"


def test_a_branch_in_place_of_a_host(tmp_path: Path) -> None:
    vega3d.save_pretrained(hosts.patch(tiny_model(FAMILY)), tmp_path)
    (check, *_) = diagnose(tmp_path)
    assert (check.name, check.status) == ("load", "FAIL")
    assert "pass the host as MODEL and this folder as --branch" in check.measured


def test_a_prior_that_is_not_there_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny-wan'"):
        next(diagnose("nobody/has-this", prior="tinywan"))


# Broken hosts: what only measuring finds.


def with_statistics(family: str, mean: list[float], std: list[float]) -> Any:
    wrong = tiny_processor(family)
    for part in (wrong.image_processor, getattr(wrong, "video_processor", None)):
        if part is not None:
            part.image_mean, part.image_std = mean, std
    return wrong


@pytest.mark.parametrize(
    ("mean", "std", "shown"),
    [
        # Out of range: the prior would refuse the frames.
        (BROKEN_HALF, BROKEN_HALF, "in [-0.40, 1.5"),
        # In range, and only looking at the picture tells: everything is greyer.
        ([0.47, 0.47, 0.47], [0.15, 0.15, 0.15], "in [0.2"),
        # Hardly off the picture, but enough to be refused by the prior.
        ([0.481, 0.458, 0.408], [0.29, 0.282, 0.298], "in [-0.04, 1.05], off the picture by 0.0170"),
        # A shift of one channel.
        ([0.481, 0.458, 0.6], [0.269, 0.261, 0.276], "(0.481, 0.458, 0.6)"),
    ],
)
def test_wrong_pixel_statistics(
    model: nn.Module, probe: Probe, mean: list[float], std: list[float], shown: str
) -> None:
    vega3d.patch(model, hosts_prior(), processor=with_statistics(FAMILY, mean, std))
    check = questions.check_pixels(model, probe)
    assert check.status == "FAIL"
    assert "the pixel statistics are wrong" in check.measured
    assert shown in check.measured
    assert "processor=processor" in check.advice


def test_a_wrong_guess_of_the_family(processor: Any) -> None:
    """No processor given to patch, and the model's own differs from its family's: pixels fails, whatever the range."""
    model = tiny_model(FAMILY)
    unusual = with_statistics(FAMILY, BROKEN_HALF, BROKEN_HALF)
    vega3d.patch(model, hosts_prior())
    check = questions.check_pixels(model, make_probe(unusual, model))
    assert check.status == "FAIL"
    assert "from the family" in check.measured
    vega3d.unpatch(model)
    # And `examine` says so before it comes to that, and patches with the processor's own.
    checks = until("pixels", examine(model, unusual))
    assert checks["processor"].status == "WARN"
    assert "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5); the family's" in checks["processor"].measured
    assert checks["pixels"].status == "PASS"


def hosts_prior() -> vega3d.Prior:
    return vega3d.load_prior("tiny-wan")


def test_pixels_in_another_order(model: nn.Module, probe: Probe) -> None:
    hosts.patch(model)
    order = torch.randperm(probe.picture["pixel_values"].shape[0], generator=torch.Generator().manual_seed(0))
    picture = {**probe.picture, "pixel_values": probe.picture["pixel_values"][order]}
    check = questions.check_pixels(model, Probe(picture, probe.black, probe.white, None, ""))
    assert check.status == "FAIL"
    assert "does not see the picture" in check.measured


def test_a_host_that_ignores_its_images(model: nn.Module, processor: Any) -> None:
    """The tower runs, the branch runs, and the language model is given something else."""
    token = model.config.image_token_id
    seen: dict[str, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["ids"] = kwargs["input_ids"]

    def blind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeddings = kwargs["inputs_embeds"].clone()
        embeddings[seen["ids"] == token] = 0
        return args, {**kwargs, "inputs_embeds": embeddings}

    layers = next(name for name, _ in model.named_modules() if name.endswith("layers.0") and "visual" not in name)
    language_model = model.get_submodule(layers.removesuffix(".layers.0"))
    model.register_forward_pre_hook(note, with_kwargs=True)
    language_model.register_forward_pre_hook(blind, with_kwargs=True)
    checks = by_name(examine(model, processor))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["vision", "branch"]
    assert "it ignores its images" in checks["vision"].measured
    assert "no more than noise" in checks["branch"].measured


def test_a_tower_whose_output_is_constant(model: nn.Module, processor: Any) -> None:
    """The host is blind, but what leaves the seam is used: the branch would be its only eye."""
    tower = model.get_submodule(vega3d.get_handle(hosts.patch(copy.deepcopy(model))).seam.path)

    def forget(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return torch.ones_like(output)
        output.pooler_output = torch.ones_like(output.pooler_output)
        return output

    tower.register_forward_hook(forget)
    assert failed(examine(model, processor)) == ["vision"]


def test_a_seam_that_is_not_called(model: nn.Module, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = vega3d.get_handle(hosts.patch(copy.deepcopy(model))).seam.path
    tower = type(model.get_submodule(path))
    # A tower that answers, but whose hooks are never run: what a host that changed its ways would look like.
    monkeypatch.setattr(tower, "__call__", lambda self, *a, **k: self.forward(*a, **k))
    checks = by_name(examine(model, processor))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["seam"]
    assert "image: 0 calls" in checks["seam"].measured
    assert "was not called, so the branch did not see these images" in checks["seam"].measured
    assert checks["pixels"].status == checks["branch"].status == "SKIP"


def test_a_patch_that_is_not_invisible(model: nn.Module, probe: Probe) -> None:
    baseline = Baseline.of(model, probe.picture)
    hosts.patch(model, init="released")
    check = questions.check_identity(model, baseline)
    assert check.status == "FAIL"
    assert "logits differ by up to" in check.measured


def test_an_unpatch_that_leaves_something_behind(model: nn.Module, probe: Probe) -> None:
    baseline = Baseline.of(model, probe.picture)
    assert questions.check_unpatch(model, baseline).status == "PASS"
    model.lm_head.register_buffer("forgotten", torch.zeros(1))
    check = questions.check_unpatch(model, baseline)
    assert check.status == "FAIL"
    assert "lm_head.forgotten" in check.measured
    del model.lm_head.forgotten
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert questions.check_unpatch(model, baseline).status == "FAIL"


def test_a_host_that_is_not_deterministic(model: nn.Module, processor: Any) -> None:
    """Its own noise is not mistaken for a fault, nor for an effect of the images or the branch."""
    model.lm_head.register_forward_hook(lambda module, args, output: output + 0.01 * torch.randn_like(output))
    checks = by_name(examine(model, processor))
    assert checks["identity"].status == checks["unpatch"].status == "WARN"
    assert "not deterministic" in checks["identity"].measured
    assert checks["vision"].status == "PASS"
    model.lm_head.register_forward_hook(lambda module, args, output: torch.randn_like(output))
    assert {"vision", "branch"} <= set(failed(examine(model, processor)))


def test_a_host_that_computes_nan(model: nn.Module, processor: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    checks = until("vision", examine(model, processor))
    assert checks["vision"].status == "FAIL"
    assert "NaN" in checks["vision"].measured


def test_a_host_that_cannot_run(model: nn.Module, processor: Any) -> None:
    def fail(module: nn.Module, args: Any) -> None:
        raise RuntimeError("no kernel for this")

    model.lm_head.register_forward_pre_hook(fail)
    checks = by_name(examine(model, processor))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["vision"]
    assert checks["vision"].measured == "RuntimeError: no kernel for this"
    assert checks["patch"].status == "SKIP"


def test_a_prior_that_cannot_be_loaded(model: nn.Module, processor: Any, tmp_path: Path) -> None:
    checks = by_name(examine(model, processor, prior="wan2.1-t2v-1.3b", pretrained=str(tmp_path)))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["patch"]
    assert "is no Wan checkpoint" in checks["patch"].measured
    assert not vega3d.is_patched(model)


def test_a_model_that_is_patched_already(model: nn.Module, processor: Any) -> None:
    hosts.patch(model)
    checks = by_name(examine(model, processor))
    assert checks["host"].status == "FAIL"
    assert "already patched" in checks["host"].measured
    # It is the user's branch, so it stays.
    assert vega3d.is_patched(model)


def test_the_traceback_can_be_asked_for(model: nn.Module, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_TRACEBACK", "1")
    hosts.patch(model)
    with pytest.raises(PatchError):
        list(examine(model, processor))


# Check `branch`: only what comes through the branch counts.


@pytest.mark.parametrize("family", [FAMILY, OTHER])
def test_a_shut_branch_fails_although_the_host_sees(family: str) -> None:
    """Black against white moves the host's answer on every way there is, and the check `branch` sees none of it."""
    model, processor = tiny_model(family), tiny_processor(family)
    probe = make_probe(processor, model)
    assert questions.check_vision(model, probe, Baseline.of(model, probe.picture)).status == "PASS"
    hosts.patch(model)
    check = questions.check_branch(model, probe)
    assert check.status == "FAIL"
    assert "the branch has no effect" in check.measured
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.1)
    assert questions.check_branch(model, probe).status == "PASS"
    with vega3d.zeroed(model):
        assert questions.check_branch(model, probe).status == "FAIL"


# A saved branch.


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fresh``, ``trained``, ``peft`` (the latter in an adapter) and ``wide``, for another hidden size."""
    root = tmp_path_factory.mktemp("branches")
    prior = hosts_prior_quietly()
    settings = {"projector": hosts.PROJECTOR}
    model = vega3d.patch(tiny_model(FAMILY), prior, **settings)
    vega3d.save_pretrained(model, root / "fresh")
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.25)
    vega3d.save_pretrained(model, root / "trained")
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["vega3d"])
    get_peft_model(model, config).save_pretrained(root / "peft")
    wide = vega3d.patch(tiny_model(FAMILY, hidden_size=128), prior, **settings)
    vega3d.save_pretrained(wide, root / "wide")
    return root


def hosts_prior_quietly() -> vega3d.Prior:
    """For a fixture that is set up before the one that allows random weights."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hosts_prior()


@pytest.mark.parametrize("name", ["trained", "peft"])
def test_a_trained_branch_passes(folder: Callable[[str], Path], branches: Path, name: str) -> None:
    checks = by_name(diagnose(folder(FAMILY), branch=branches / name))
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(BRANCH_STEPS, "PASS")
    assert "residual_scale 0.25 (started at 0)" in checks["saved"].measured


def test_a_branch_that_was_not_trained_fails(folder: Callable[[str], Path], branches: Path) -> None:
    checks = by_name(diagnose(folder(FAMILY), branch=branches / "fresh"))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["branch"]
    assert "residual_scale 0 (started at 0)" in checks["saved"].measured


def test_a_branch_of_another_model_fails(folder: Callable[[str], Path], branches: Path) -> None:
    checks = by_name(diagnose(folder(FAMILY), branch=branches / "wide"))
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["saved"]
    assert "was trained for hidden size 128, this model has 64" in checks["saved"].measured


def test_a_branch_that_is_not_there_is_told_before_anything_is_loaded(branches: Path) -> None:
    with pytest.raises(SavedBranchError, match="Did you mean 'trained'"):
        next(diagnose("nobody/has-this", branch=branches / "trainde"))


# The command.


def test_the_command_prints_a_line_for_each_check(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.out, "width", 80)
    result = CliRunner().invoke(app, ["doctor", str(folder(FAMILY))])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("PASS")] == list(HOST_STEPS)
    assert lines[-1] == "Works on this host."
    assert result.stderr == ""


def test_the_command_fails_when_a_check_fails(
    folder: Callable[[str], Path], branches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.out, "width", 80)
    arguments = ["doctor", str(folder(FAMILY)), "--branch", str(branches / "wide")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "FAIL  saved" in result.stdout
    assert "SKIP             pixels, seam, branch: saved failed" in result.stdout
    assert result.stdout.splitlines()[-1] == "Failed: saved."
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert [check["name"] for check in found["checks"]] == list(BRANCH_STEPS)


def test_the_command_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 80)
    tiny_model(FAMILY).save_pretrained(tmp_path)
    with_statistics(FAMILY, BROKEN_HALF, BROKEN_HALF).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 0
    assert "WARN  processor" in result.stdout
    assert "-> Check that this is the model's own processor" in result.stdout
    assert result.stdout.splitlines()[-1] == "Works on this host, with a warning: processor."
