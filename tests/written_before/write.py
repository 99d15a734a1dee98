"""Writes the files of this folder. Run once, with the library as it was before 0.1.0 (commit ade94b9)::

    git worktree add ../before ade94b9 && cd /tmp
    PYTHONPATH=../before:../before/adapters python .../tests/written_before/write.py .../tests/written_before

Everything is tiny, so that it can lie in the repository: a branch's own folder, a trainer's checkpoint with LoRA, a
whole model's checkpoint, and a feature store; and ``expected.safetensors``, with what they hold.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import vega3d
from vega3d_qwen_vl.tiny import tiny_model

PRIOR = {"size": (32, 48), "tap": 1}
PROJECTOR = {"name": "mlp", "hidden_dim": 4}


def frames() -> torch.Tensor:
    """Two clips ``[2, 3, 32, 48]``, the same on every machine."""
    numbers = torch.arange(2 * 2 * 3 * 32 * 48).reshape(2, 2, 3, 32, 48)
    return (numbers * 7919 // 7 % 256).float() / 255


class Plain(vega3d.Prior):
    """Four numbers for each 16x16 pixels, by sums that no machine rounds."""

    feature_dim, fingerprint = 4, "plain"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = (frames * 255).round()[:, :, ::16, ::16]
        return torch.cat([pixels, pixels.sum(1, keepdim=True)], dim=1) / 256


def patched(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = tiny_model(hidden_size=16)
    vega3d.patch(model, "tiny-wan", init="released", projector=PROJECTOR, **PRIOR)
    # Numbers that are exact in every precision, and the same on every machine.
    with torch.no_grad():
        for index, parameter in enumerate(vega3d.get_handle(model).parameters()):
            count = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.copy_((count * 37 + index * 101 + seed) % 128 / 64 - 1)
    return model


def branch_of(model: nn.Module) -> dict[str, torch.Tensor]:
    state = vega3d.get_handle(model).branch.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items() if name != "record"}


def main(folder: Path) -> None:
    expected: dict[str, torch.Tensor] = {}
    for name in ("branch", "adapter", "full", "store"):
        shutil.rmtree(folder / name, ignore_errors=True)

    model = patched(1)
    vega3d.save_pretrained(model, folder / "branch")
    expected |= {f"branch.{name}": tensor for name, tensor in branch_of(model).items()}

    from peft import LoraConfig, get_peft_model

    model = patched(2)
    config = LoraConfig(r=1, target_modules=r".*layers\.0\.self_attn\.q_proj", modules_to_save=["vega3d"])
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    expected |= {f"adapter.{name}": tensor for name, tensor in branch_of(tuned).items()}

    model = patched(3)
    keep = {name: tensor for name, tensor in model.state_dict().items() if ".vega3d." in name}
    (folder / "full").mkdir()
    # The branch as a whole model's checkpoint holds it; the host's own weights would be a megabyte.
    save_file(keep, folder / "full" / "model.safetensors", metadata={"format": "pt"})
    expected |= {f"full.{name}": tensor for name, tensor in branch_of(model).items()}

    prior, store = Plain(), vega3d.FeatureStore(folder / "store")
    store.bind(prior)
    for clip in frames():
        key = vega3d.clip_key(clip)
        store.put(key, prior(clip))
        store.put(f"{key}-bfloat16", prior(clip).to(torch.bfloat16))
        expected[f"store.{key}"] = prior(clip)
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
