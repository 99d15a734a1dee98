"""A released checkpoint that holds its own tower: the prior is that tower, in memory, saved, converted and loaded."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rows.qwen_vl import qwen_batch
from safetensors.torch import load_file, save_file
from support import goldens
from support.released import LLAVA, TOWER, llava_tensors, qwen_tensors, write
from torch import Tensor, nn
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.checkpoints.released.loading import convert_released, read_released
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import CheckpointError, SavedBranchError, Vega3dWarning
from vega3d_plugin.contracts.specs import ALL_CONTEXTS, PriorSpec
from vega3d_plugin.contracts.tables import PRIORS
from vega3d_plugin.priors.frozen.towers import find_tower, use_tower
from vega3d_plugin.priors.wan.checkpoint import load_wan
from vega3d_plugin.storage.record import TOWER_FILE
from vega3d_qwen_vl.tiny import tiny_model

SIZE = (32, 48)
MARK = "generative_encoder.tower.model."
NAME = "small-wan"


@pytest.fixture(autouse=True)
def _small_wan() -> Iterator[None]:
    """Wan from a folder whatever its size, by a name of its own: the real ones have 1536 channels."""
    PRIORS.names()
    PRIORS.add(NAME, PriorSpec(NAME, load_wan, "", contexts=ALL_CONTEXTS, defaults={"size": SIZE, "tap": 2}), "test")
    yield
    PRIORS.remove(NAME)


def wan_folder(folder: Path, weights: dict[str, Tensor]) -> Path:
    """The original layout, with the reference's VAE."""
    transformer, vae = goldens.load("wan_t2v"), goldens.load("wan_vae")
    folder.mkdir()
    save_file({key: tensor.clone() for key, tensor in weights.items()}, folder / "diffusion_pytorch_model.safetensors")
    torch.save(vae.weights, folder / "Wan2.1_VAE.pth")
    config = {"_class_name": "WanModel", "model_type": "t2v", **transformer.info["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"context": transformer.inputs["context"].reshape(1, -1)}, folder / "empty_prompt.safetensors")
    return folder


def as_initialised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers 4.50 makes of a submodule's weights that a checkpoint lacks: of linear and convolution layers
    noise, of their biases zeros; norms and modulations stay."""
    generator = torch.Generator().manual_seed(450)
    made = {}
    for name, tensor in weights.items():
        if name.endswith(".weight") and tensor.ndim > 1:
            made[name] = torch.randn(tensor.shape, generator=generator) * 0.02
        elif name.endswith(".bias") and weights[name.removesuffix("bias") + "weight"].ndim > 1:
            made[name] = torch.zeros_like(tensor)
        else:
            made[name] = tensor.clone()
    return made


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return goldens.load("wan_t2v").weights


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    return wan_folder(tmp_path_factory.mktemp("wan") / "pristine", weights)


@pytest.fixture(scope="module")
def trained_with(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """The same checkpoint with the tower of the released training."""
    return wan_folder(tmp_path_factory.mktemp("wan") / "own", as_initialised(weights))


def branch_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return qwen_tensors(dim=goldens.load("wan_t2v").info["config"]["dim"], size=64)


def released(folder: Path, weights: dict[str, Tensor], tower: dict[str, Tensor] | None = None) -> Path:
    """A released checkpoint's branch, with a tower or without."""
    kept = {f"{MARK}{name}": tensor for name, tensor in (tower or {}).items()}
    return write(folder, {**branch_tensors(weights), **kept}, {**TOWER, "generative_encoder_tower_type": "of-ours"})


@pytest.fixture
def source(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    return released(tmp_path / "source", weights, as_initialised(weights))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    out: Tensor = model.eval()(**qwen_batch("qwen2_5_vl")).logits
    return out


def loaded(source: Path, pretrained: Path, **options: Any) -> nn.Module:
    return vega3d.load_released(tiny_model(), source, prior=NAME, pretrained=pretrained, size=SIZE, tap=2, **options)


@pytest.fixture
def expected(tmp_path: Path, weights: dict[str, Tensor], trained_with: Path) -> Tensor:
    """Logits with the branch, and a prior that was read from a folder with the tower's own weights."""
    return logits(loaded(released(tmp_path / "bare", weights), trained_with))


def test_logits_are_those_of_the_checkpoints_own_tower(
    source: Path, pristine: Path, expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vega3d"):
        model = loaded(source, pristine)
    assert float((logits(model) - expected).abs().max()) <= 1e-5
    published = loaded(source, pristine, own_tower=False)
    assert float((logits(published) - expected).abs().max()) > 1e-3
    # It is another prior, and a store or a branch of the published one does not fit it.
    handles = [vega3d.get_handle(each) for each in (model, published)]
    assert handles[0].prior.fingerprint != handles[1].prior.fingerprint
    assert [handle.settings.prior.tower for handle in handles] == [str(source.resolve()), None]
    told = next(line for line in caplog.messages if "Its tower" in line)
    assert "Its tower is not the published one: " in told
    assert "what else it needs is from" in told
    different, total = (int(part.replace(",", "")) for part in told.split(" parameters differ")[0].split()[-3::2])
    named = dict(handles[1].prior.models["transformer"].named_parameters())
    assert total == sum(p.numel() for p in named.values())
    kept = sum(p.numel() for name, p in named.items() if p.ndim < 2 and "norm" in name)
    assert 0.9 * total < different <= total - kept


def test_a_tower_that_is_the_published_one_is_left(
    tmp_path: Path, weights: dict[str, Tensor], pristine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the half precision that checkpoints are written in."""
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    with caplog.at_level(logging.INFO, "vega3d"):
        model = loaded(released(tmp_path / "a", weights, half), pristine)
    assert "Its tower is the published one: all" in caplog.text
    assert vega3d.get_handle(model).settings.prior.tower is None
    bare = loaded(released(tmp_path / "b", weights), pristine)
    assert torch.equal(logits(model), logits(bare))


def test_one_changed_number_is_another_tower(tmp_path: Path, weights: dict[str, Tensor], pristine: Path) -> None:
    tower = {name: tensor.clone() for name, tensor in weights.items()}
    tower["blocks.1.ffn.0.weight"][0, 0] += 1
    model = loaded(released(tmp_path / "a", weights, tower), pristine)
    assert vega3d.get_handle(model).settings.prior.tower is not None
    # Behind the tap nothing is looked at, for nothing of it is used.
    tower = {name: tensor.clone() for name, tensor in weights.items()}
    tower["blocks.3.ffn.0.weight"][0, 0] += 1
    model = loaded(released(tmp_path / "b", weights, tower), pristine)
    assert vega3d.get_handle(model).settings.prior.tower is None


def test_saved_and_loaded_again(source: Path, pristine: Path, expected: Tensor, tmp_path: Path) -> None:
    model = loaded(source, pristine)
    vega3d.save_pretrained(model, tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "vega3d_config.json").read_text())
    assert record["settings"]["prior"]["tower"] == TOWER_FILE
    # It stands by itself: what it was read from may go, and it may be moved.
    shutil.rmtree(source)
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    again = vega3d.load_pretrained(tiny_model(), moved)
    assert torch.equal(logits(again), logits(model))
    assert float((logits(again) - expected).abs().max()) <= 1e-5
    # And on from there.
    vega3d.save_pretrained(again, tmp_path / "third")
    assert torch.equal(logits(vega3d.load_pretrained(tiny_model(), tmp_path / "third")), logits(model))
    # Copies and pickles have that tower too.
    assert torch.equal(logits(copy.deepcopy(again)), logits(model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(again))), logits(model))
    # Loading into a model that has the branch already changes nothing.
    assert torch.equal(logits(vega3d.load_pretrained(again, tmp_path / "third")), logits(model))


def test_a_tower_that_is_missing_or_of_another_branch_is_told(source: Path, pristine: Path, tmp_path: Path) -> None:
    vega3d.save_pretrained(loaded(source, pristine), tmp_path / "saved")
    tower = tmp_path / "saved" / TOWER_FILE
    kept = tower.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(SavedBranchError, match=f"with a tower of its own, and lacks {TOWER_FILE}.*tower=FILE"):
        vega3d.load_pretrained(tiny_model(), tmp_path / "saved")
    shutil.copy(kept, tmp_path / TOWER_FILE)
    assert vega3d.load_pretrained(tiny_model(), tmp_path / "saved", tower=tmp_path / TOWER_FILE)
    changed = {name: tensor.clone() for name, tensor in load_file(kept).items()}
    changed[f"{MARK}blocks.0.ffn.0.weight"] += 1
    save_file(changed, tower)
    with pytest.raises(SavedBranchError, match="is of another branch: its checksum is"):
        vega3d.load_pretrained(tiny_model(), tmp_path / "saved")
    data = bytearray(kept.read_bytes())
    data[-9] ^= 1
    tower.unlink()
    tower.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its content has changed"):
        vega3d.load_pretrained(tiny_model(), tmp_path / "saved")
    tower.unlink()
    tower.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises((CheckpointError, SavedBranchError), match=TOWER_FILE):
        vega3d.load_pretrained(tiny_model(), tmp_path / "saved")


def test_a_trainers_checkpoint_names_the_tower_it_was_trained_with(
    source: Path, pristine: Path, tmp_path: Path
) -> None:
    model = loaded(source, pristine)
    model.save_pretrained(tmp_path / "trained")
    base = type(model).from_pretrained(tmp_path / "trained")
    assert torch.equal(logits(vega3d.load_pretrained(base, tmp_path / "trained")), logits(model))


@pytest.mark.parametrize("compared", [True, False])
def test_converted(source: Path, pristine: Path, expected: Tensor, tmp_path: Path, compared: bool) -> None:
    where = {"pretrained": str(pristine)} if compared else {}
    found = convert_released(source, tmp_path / "out", prior=NAME, **where)
    assert (tmp_path / "out" / TOWER_FILE).is_file()
    assert ("parameters differ" if compared else "was not compared") in found.tower_line
    fingerprint = read_saved(tmp_path / "out").record["prior"]["fingerprint"]
    assert (fingerprint is not None) is compared
    model = vega3d.load_pretrained(tiny_model(), tmp_path / "out", pretrained=pristine)
    assert float((logits(model) - expected).abs().max()) <= 1e-5


def test_a_published_tower_is_not_converted(
    tmp_path: Path, weights: dict[str, Tensor], pristine: Path, source: Path
) -> None:
    same = released(tmp_path / "same", weights, weights)
    found = convert_released(same, tmp_path / "out", prior=NAME, pretrained=str(pristine))
    assert "is the published one" in found.tower_line
    assert not (tmp_path / "out" / TOWER_FILE).exists()
    convert_released(source, tmp_path / "without", prior=NAME, pretrained=str(pristine), own_tower=False)
    assert not (tmp_path / "without" / TOWER_FILE).exists()


def test_the_command_says_what_was_done(source: Path, pristine: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(source), "--prior", NAME, "--pretrained", str(pristine), "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert f"{len(branch_tensors({}))} tensors, and {TOWER_FILE}" in text
    assert "Its tower is not the published one:" in text
    told = json.loads(CliRunner().invoke(app, [*arguments, str(tmp_path / "json"), "--json"]).output)
    assert told["tower_file"] == TOWER_FILE
    assert told["tower_weights"] == len(read_released(source).skipped)
    assert "parameters differ" in told["tower"]
    bare = CliRunner().invoke(app, [*arguments, str(tmp_path / "bare"), "--published-tower", "--json"])
    assert json.loads(bare.output)["tower_file"] is None


def test_a_prior_that_was_loaded_before_is_compared_and_a_difference_told(
    source: Path, pristine: Path, trained_with: Path, expected: Tensor
) -> None:
    def given(folder: Path, **more: Any) -> vega3d.Prior:
        return vega3d.load_prior(NAME, pretrained=folder, size=SIZE, tap=2, **more)

    with pytest.warns(Vega3dWarning, match=r"own tower .* is not used.*parameters of the prior that was given differ"):
        vega3d.load_released(tiny_model(), source, prior=given(pristine))
    # The right one, as weights of its own or by the setting.
    for prior in (given(trained_with), given(pristine, tower=source)):
        model = vega3d.load_released(tiny_model(), source, prior=prior)
        assert float((logits(model) - expected).abs().max()) <= 1e-5
    used = given(trained_with)
    used(torch.rand(1, 3, *SIZE))
    with pytest.warns(Vega3dWarning, match="has run already, so its weights can no longer be compared"):
        vega3d.load_released(tiny_model(), source, prior=used)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tower: {k: v for k, v in tower.items() if "blocks.1." not in k}, "it lacks"),
        (lambda tower: {**tower, "blocks.0.ffn.0.weight": torch.zeros(2, 2)}, r"ffn\.0\.weight is \[2, 2\], expected"),
    ],
)
def test_a_tower_that_does_not_fit_is_told_and_not_used(
    tmp_path: Path,
    weights: dict[str, Tensor],
    pristine: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    problem: str,
) -> None:
    folder = released(tmp_path / "a", weights, change(as_initialised(weights)))
    with pytest.warns(Vega3dWarning, match=f"own tower .* is not used, .*{problem}"):
        model = loaded(folder, pristine)
    assert vega3d.get_handle(model).settings.prior.tower is None


def test_a_tower_of_a_kind_that_cannot_be_read(source: Path) -> None:
    prior = type("External", (), {"family": "external", "settings": vega3d.PriorSettings(name="external")})()
    with pytest.raises(CheckpointError, match="cannot be read for the prior 'external'"):
        use_tower(prior, find_tower(source))
    with pytest.raises(CheckpointError, match="holds no tower"):
        vega3d.load_prior("tiny-wan", tower=write(source.parent / "none", {"a": torch.zeros(1)}, None))


def test_llavas_layout_holds_no_tower(tmp_path: Path) -> None:
    """There the tower is kept in ``__dict__``, outside the module tree, so no checkpoint has its weights."""
    found = read_released(write(tmp_path / "a", llava_tensors(), LLAVA))
    assert not found.skipped
    assert not found.tower
