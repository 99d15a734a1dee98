"""Whole checkpoints in the released layouts, of the real classes: a fresh host computes what the trained one did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import HOSTS, Host, logits
from safetensors.torch import save_file
from torch import Tensor, nn

import vega3d
from vega3d_plugin.checkpoints.released.loading import convert_released
from vega3d_plugin.checkpoints.released.settings import LLAVA, QWEN, Layout
from vega3d_plugin.contracts.errors import SavedBranchError

#: The released hosts, and what else is like them.
QWEN_HOSTS = [host for host in HOSTS if host.name in ("qwen2_vl", "qwen2_5_vl")]
LLAVA_HOSTS = [host for host in HOSTS if host.name in ("llava_double", "llava_next", "llava_onevision")]
CASES = [*((host, QWEN) for host in QWEN_HOSTS), *((host, LLAVA) for host in LLAVA_HOSTS)]
SETTINGS: dict[Layout, dict[str, Any]] = {
    QWEN: {"fusion": "token_gated_residual", "projector": {"name": "mlp", "hidden_dim": 24}},
    LLAVA: {"fusion": "token_gated", "projector": {"name": "mlp2x_gelu"}, "config": {"space": "adaptive_avg"}},
}
# As LLaVA's own code names what transformers' LLaVA holds.
ORIGINAL = (
    (r"^(model\.)?language_model\.(model\.)?(?!lm_head)", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^(model\.)?image_newline$", "model.image_newline"),
)


def trained(host: Host, layout: Layout) -> nn.Module:
    """A host with a branch, all weights other than a fresh one's."""
    model = host.build()
    torch.manual_seed(0)
    vega3d.patch(model, "tiny-wan", init="released", **SETTINGS[layout], **host.options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
    return model


def written(model: nn.Module, layout: Layout, folder: Path, rename=lambda key: key) -> Path:
    """What the released trainer would have written of it."""
    tensors: dict[str, Tensor] = {}
    lead = "" if layout is QWEN else "model."
    for key, tensor in model.state_dict().items():
        _, found, name = key.rpartition("vega3d.")
        if not found:
            tensors[rename(key)] = tensor.clone()
        elif name != "record":
            part, _, rest = name.partition(".")
            tensors[lead + (layout.projector if part == "projector" else layout.fuser) + rest] = tensor.clone()
    assert any("embed_tokens.weight" in key for key in tensors)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Released"]}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("host", "layout"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_a_fresh_host_computes_what_the_trained_one_did(host: Host, layout: Layout, tmp_path: Path) -> None:
    model = trained(host, layout)
    expected = logits(model, host.batch())
    source = written(model, layout, tmp_path / "released")
    fresh = host.build()
    vega3d.load_released(fresh, source, prior="tiny-wan", **host.options)
    assert torch.equal(logits(fresh, host.batch()), expected)
    # The branch is part of it, and can be taken out again.
    with vega3d.disabled(fresh):
        assert not torch.equal(logits(fresh, host.batch()), expected)
    vega3d.unpatch(fresh)
    # Converted, on a host that has the language model already.
    convert_released(source, tmp_path / "branch", host=host.adapter, prior="tiny-wan")
    vega3d.load_pretrained(fresh, tmp_path / "branch", **host.options)
    assert torch.equal(logits(fresh, host.batch()), expected)


@pytest.mark.parametrize("host", [host for host in HOSTS if host.name == "llava_onevision"], ids=lambda host: host.name)
def test_names_of_llavas_own_code_on_transformers_llava(host: Host, tmp_path: Path) -> None:
    def original(key: str) -> str:
        for pattern, name in ORIGINAL:
            key, count = re.subn(pattern, name, key)
            if count:
                break
        return key

    model = trained(host, LLAVA)
    expected = logits(model, host.batch())
    source = written(model, LLAVA, tmp_path / "released", original)
    fresh = host.build()
    vega3d.load_released(fresh, source, prior="tiny-wan")
    assert torch.equal(logits(fresh, host.batch()), expected)


def test_old_names_on_new_models_and_back(tmp_path: Path) -> None:
    """Before transformers 4.52: ``visual`` and ``model.layers``; after: ``model.visual``, ``model.language_model``."""
    host = QWEN_HOSTS[0]
    model = trained(host, QWEN)
    new = any(key.startswith("model.visual.") for key in model.state_dict())

    def other(key: str) -> str:
        pairs = [("model.visual.", "visual."), ("model.language_model.", "model.")]
        for a, b in pairs:
            if new and key.startswith(a):
                return b + key[len(a) :]
            if not new and key.startswith(b):
                return a + key[len(b) :]
        return key

    source = written(model, QWEN, tmp_path / "released", other)
    fresh = host.build()
    vega3d.load_released(fresh, source, prior="tiny-wan")
    assert torch.equal(logits(fresh, host.batch()), logits(model, host.batch()))


def test_of_another_host(tmp_path: Path) -> None:
    qwen, llava = QWEN_HOSTS[0], LLAVA_HOSTS[0]
    source = written(trained(llava, LLAVA), LLAVA, tmp_path / "released")
    model = qwen.build()
    with pytest.raises(SavedBranchError, match=r"for host 'llava_video', this model has 'qwen_vl'"):
        vega3d.load_released(model, source, prior="tiny-wan")
    assert not vega3d.is_patched(model)
