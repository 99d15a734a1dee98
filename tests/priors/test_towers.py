"""Every kind of released tower that can be read: in the place of published weights it gives what its folder gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import goldens
from support.small_wan import frames
from support.toys import stable_diffusion, vggt
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError
from vega3d_plugin.priors.frozen.towers import compare_tower, find_tower, write_tower
from vega3d_plugin.storage.record import TOWER_FILE

MARK = "generative_encoder.tower."


@dataclass(frozen=True)
class Kind:
    """A prior whose tower the released Qwen code registers.

    Attributes:
        prior: its name.
        write: writes its checkpoint.
        files: of the tower's weights in the checkpoint, with what the tower calls the model in front of their names.
        settings: at this size.
    """

    prior: str
    write: Callable[[Path], None]
    files: dict[str, str]
    settings: dict[str, Any]

    def load(self, folder: Path, **more: Any) -> vega3d.Prior:
        return vega3d.load_prior(self.prior, pretrained=folder, **self.settings, **more)


def write_wan(golden: str, class_name: str, kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        found = goldens.load(golden)
        save_file(found.weights, folder / "diffusion_pytorch_model.safetensors")
        torch.save(goldens.load("wan_vae").weights, folder / "Wan2.1_VAE.pth")
        config = {**found.info["config"], "_class_name": class_name, "model_type": kind}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"context": found.inputs["context"].reshape(1, -1)}, folder / "empty_prompt.safetensors")

    return write


def write_vggt(folder: Path) -> None:
    torch.manual_seed(0)
    save_file(vggt.VGGT().state_dict(), folder / "model.safetensors")
    config = {"embed_dim": vggt.DIM, "img_size": 518, "patch_size": vggt.PATCH}
    (folder / "config.json").write_text(json.dumps(config))


WAN = {"diffusion_pytorch_model.safetensors": "model."}
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
KINDS = {
    "wan": Kind("wan2.1-t2v-1.3b", write_wan("wan_t2v", "WanModel", "t2v"), WAN, {"size": (32, 48), "tap": 2}),
    "vace": Kind("wan2.1-vace-1.3b", write_wan("wan_vace", "VaceWanModel", "vace"), WAN, {"size": (32, 48), "tap": 1}),
    "stable diffusion": Kind("sd2.1", stable_diffusion.write, {UNET: "unet.", VAE: "vae."}, {"size": (64, 96)}),
    "its vae": Kind("sd2.1-vae", stable_diffusion.write_vae, {VAE: "vae."}, {"size": (32, 48)}),
    "vggt": Kind("vggt", write_vggt, {"model.safetensors": "model."}, {"size": (28, 42)}),
}


@pytest.fixture(autouse=True)
def _package() -> Iterator[None]:
    with vggt.installed():
        yield


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def pristine(kind: Kind, tmp_path: Path) -> Path:
    folder = tmp_path / "pristine"
    folder.mkdir()
    kind.write(folder)
    return folder


def own(kind: Kind, pristine: Path) -> tuple[Path, Path]:
    """The checkpoint with another tower; and that tower in a checkpoint of the released Qwen code."""
    folder = Path(shutil.copytree(pristine, pristine.parent / "own"))
    tower: dict[str, Tensor] = {}
    torch.manual_seed(5)
    for file, lead in kind.files.items():
        tensors = {name: t + 0.02 * torch.randn_like(t) for name, t in load_file(folder / file).items()}
        (folder / file).unlink()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        tower |= {f"{MARK}{lead}{name}": tensor for name, tensor in tensors.items()}
    checkpoint = pristine.parent / "released"
    checkpoint.mkdir()
    save_file(tower, checkpoint / "model.safetensors")
    return folder, checkpoint


def test_a_tower_in_the_place_of_the_published_weights(kind: Kind, pristine: Path) -> None:
    folder, checkpoint = own(kind, pristine)
    published, expected = kind.load(pristine), kind.load(folder)
    clip = frames(2)
    prior = kind.load(pristine, tower=checkpoint)
    assert prior.fingerprint == expected.fingerprint != published.fingerprint
    torch.testing.assert_close(prior(clip), expected(clip), rtol=0, atol=0)
    assert not torch.allclose(prior(clip), published(clip), atol=1e-4)
    # What is written beside a branch is that tower again, and is not written twice.
    mark = write_tower(find_tower(checkpoint), pristine.parent / "beside")
    file = pristine.parent / "beside" / TOWER_FILE
    written = file.stat().st_mtime_ns
    assert write_tower(find_tower(checkpoint), pristine.parent / "beside") == mark
    assert file.stat().st_mtime_ns == written
    again = kind.load(pristine, tower=file)
    assert again.fingerprint == expected.fingerprint


def test_the_published_tower_is_told_as_such(kind: Kind, pristine: Path) -> None:
    folder, checkpoint = own(kind, pristine)
    same = compare_tower(kind.load(folder), find_tower(checkpoint))
    assert same.different == 0
    other = compare_tower(kind.load(pristine), find_tower(checkpoint))
    assert 0.9 * same.parameters < other.different <= other.parameters == same.parameters


def test_a_tower_of_another_kind(pristine: Path, kind: Kind) -> None:
    _, checkpoint = own(kind, pristine)
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        {name.replace(MARK, f"{MARK}other."): t.clone() for name, t in tensors.items()}, checkpoint / "x.safetensors"
    )
    with pytest.raises(CheckpointError, match="it lacks"):
        kind.load(pristine, tower=checkpoint / "x.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        kind.load(pristine, tower=checkpoint / "no" / "where")
